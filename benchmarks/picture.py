"""Draw overlap against cost of all methods, from the tables' data in `docs/results`, for the README.

    python benchmarks/picture.py

`first.json` gives our methods and SyN, `speed.json` (by `speed.py`) greedy, of the same scans with the same affine.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

DOCS = Path(__file__).parents[1] / "docs"
TARGET = DOCS / "images" / "results.png"
#: Label, source, name there, whether it is ours, and where its label goes from the mean (points).
METHODS = (
    ("LapIRN", "first", "LapIRN, default", True, (0, -16)),
    ("NIO_m fast", "first", "NIO_m fast, default", True, (0, 14)),
    ("NIO_m paper", "first", "NIO_m, default", True, (0, 14)),
    ("SyN fast", "first", "SyN fast", False, (0, 14)),
    ("greedy", "speed", "greedy", False, (0, -16)),
    ("SyN precise", "first", "SyN precise", False, (-6, -22)),
)
OURS, OTHERS = "#0b6e99", "#b0552b"


def main() -> None:
    """Write `TARGET`."""
    first = json.loads((DOCS / "results" / "first.json").read_text())
    speed = json.loads((DOCS / "results" / "speed.json").read_text())["runs"]
    figure, axes = plt.subplots(figsize=(7.2, 4.0), constrained_layout=True)
    for label, source, name, ours, offset in METHODS:
        if source == "first":
            points = [(run["processor seconds"], run["Dice"]) for run in first[name].values()]
        else:
            points = [(run["processor_seconds"], run["dice"]) for run in speed[name].values()]
        seconds, overlap = np.array(points).T
        colour = OURS if ours else OTHERS
        axes.scatter(seconds, overlap, s=14, color=colour, alpha=0.45, linewidths=0)
        mean = (np.exp(np.log(seconds).mean()), overlap.mean())
        axes.scatter(*mean, s=70, color=colour, marker="o" if ours else "D", zorder=3)
        axes.annotate(
            f"{label}  {overlap.mean():.3f}", mean, offset, textcoords="offset points", ha="center", color=colour,
            fontsize=9, weight="bold" if ours else "normal",
        )  # fmt: skip
    affine = np.mean([run["Dice"] for run in first["affine"].values()])
    axes.axhline(affine, color="0.5", linewidth=1, linestyle=":")
    axes.annotate(f"affine  {affine:.3f}", (1, affine), (-4, 4), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", color="0.4", fontsize=9)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(3, 9000)
    axes.set_ylim(affine - 0.02, 0.69)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("processor seconds of a registration (less is better)")
    axes.set_ylabel("mean Dice of the manual labels")
    axes.spines[["top", "right"]].set_visible(False)
    scans = list(first["affine"])
    axes.set_title(f"{len(scans)} scans of OASIS to sub-1000; small dots are scans, large ones means", fontsize=10)
    figure.savefig(TARGET, dpi=130)
    print(f"written: {TARGET}")


if __name__ == "__main__":
    main()
