"""The command lines: `nio-pydra` for BIDS datasets, `nio` for everything else."""
