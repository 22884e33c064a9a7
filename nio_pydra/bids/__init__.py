"""BIDS datasets: input scans, atlases, and the names and sidecars of results."""
