"""Accuracy against regularity: methods with several values of the setting that governs smoothness.

On two training scans to sub-1000, so that the test scans stay unseen. The shipped LapIRN was trained on other images.
"""

from __future__ import annotations

import argparse

from common import Comparison, oasis, publish, read_options, run

SCANS = ("1001", "1006")
#: Method: its setting, and the values, the default among them.
SWEEPS = {
    "nio_m:fast": ("field.objective.volume_weight", (0.0, 0.05, 0.1, 0.2)),
    "nio_m": ("network.objective.weight", (0.2, 0.4, 0.6, 0.8)),
    "io": ("field.objective.weight", (0.2, 0.4, 0.6, 0.8)),
    "syn:fast": ("field_variance", (0.0, 0.5, 1.0, 2.0)),
    "greedy": ("field_smoothing_mm", (0.3, 0.5, 0.7, 1.0)),
    "niftyreg": ("bending_energy", (0.0002, 0.001, 0.005, 0.02)),
}
NOTES = """\
Each method with several values of the setting that governs its smoothness; all else is its preset's. The scans are
of the `train` split; none of the networks here saw them.

`nio_m:fast` has the highest Dice at every std|J| that it reaches. With twice its penalty of volume change (0.2) std|J|
is a quarter lower than with its own (0.1), for 0.003 of Dice. The penalty hardly changes its round trips, which depend
on how much the displacement bends from voxel to voxel. Tried by hand on sub-1001: smoothing the final field until they
were 0.027 mm cost 0.014 of Dice."""


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Return the comparison."""
    methods = [f"{method}?{setting}={value}" for method, (setting, values) in SWEEPS.items() for value in values]
    return [
        oasis(
            options.data, "regularity", "Accuracy against regularity: two training scans of OASIS to sub-1000",
            ("affine", *methods), participants=SCANS,
        )
    ]  # fmt: skip


def main() -> int:
    """Run the sweep."""
    options = read_options(__doc__)
    options.reference = "nio_m:fast?field.objective.volume_weight=0.1"
    chosen = run(options, comparisons(options))
    if options.publish:
        publish(options, "regularity", chosen[0], NOTES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
