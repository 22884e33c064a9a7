"""Experiment 2: the eight test scans of OASIS to another atlas, sub-1010."""

from __future__ import annotations

import argparse

from common import CLASSICAL, CONVEXADAM, Comparison, oasis, publish, read_options, run

NETWORKS = (
    "lapirn", "lapirn@LapIRN_disp_fea7.pth", "lapirn@research.safetensors", "ulae", "mpr", "io", "nio", "nio_m",
    "nio_m:fast", "nio_m:diffeomorphic",
)  # fmt: skip
NOTES = """\
As [experiment 1](experiment_1.md), with another participant as the atlas.

`nio_m:fast` has the highest mean Dice, but it is not significantly ahead of greedy, which is first in DSC30: in the
cortex they are alike. Why is not known yet; this atlas was not looked at while `fast` was made."""


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
