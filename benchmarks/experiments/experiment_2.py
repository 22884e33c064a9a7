"""Experiment 2: the eight test scans of OASIS to another atlas, sub-1010."""

from __future__ import annotations

import argparse

from common import CLASSICAL, CONVEXADAM, Comparison, oasis, publish, read_options, run

NETWORKS = (
    "lapirn", "lapirn@LapIRN_disp_fea7.pth", "lapirn@research.safetensors", "ulae", "mpr", "io", "nio", "nio_m",
    "nio_m:fast",
)  # fmt: skip
NOTES = """\
As [experiment 1](experiment_1.md), with another participant as the atlas.

What `nio_m:fast` gains over greedy is less than in experiment 1. It is worse on sub-1004, whose gyri the network's
prediction takes for their neighbours (right parietal operculum: LapIRN 0.48, greedy 0.58, mean of all scans): `fast`
starts from that prediction, and its few steps of the network do not undo it (Dice of sub-1004: 0.632, greedy 0.639).
The many steps of `nio_m` do (0.644), so it is first in DSC30.

`io`, `nio` and `nio_m` ran on the GPU, four scans at a time."""


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Return the comparison."""
    return [
        oasis(
            options.data, "experiment_2", "Experiment 2: eight test scans of OASIS to sub-1010",
            (*CLASSICAL, *CONVEXADAM, *NETWORKS), atlas="1010",
        )
    ]  # fmt: skip


def main() -> int:
    """Run the experiment."""
    options = read_options(__doc__)
    chosen = run(options, comparisons(options))
    if options.publish:
        publish(options, "experiment_2", chosen[0], NOTES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
