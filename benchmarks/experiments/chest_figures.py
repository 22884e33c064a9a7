"""Pictures of the chest experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.comparison.landmark_pairs import LandmarkPair
from nio_pydra.report.canvas import new_figure
from nio_pydra.spatial.images import load_image, load_mask
from nio_pydra.spatial.transforms import Transform, resample
from nio_pydra.system.files import atomic_path

WINDOW_HU = (-1000.0, 200.0)
HIGHLIGHT = "nio_m"


def draw_errors(table: pd.DataFrame, parts: Sequence[str], path: Path) -> None:
    """Draw the errors of each method, a panel for each part: cases as points, their landmarks as a bar."""
    known = [part for part in parts if part in set(table["part"])]
    first = {part: table[table["part"] == part]["points"].iloc[0] for part in known}
    chosen = {part: table[(table["part"] == part) & (table["points"] == first[part])] for part in known}
    names = list(dict.fromkeys(name for part in known for name in chosen[part]["method"]))
    figure = new_figure(3.0 + 3.2 * len(known), 1.2 + 0.3 * len(names), "white", 110)
    axes = np.atleast_1d(figure.subplots(1, len(known), sharey=True))
    for axis, part in zip(axes, known, strict=True):
        for place, name in enumerate(names):
            own = chosen[part][chosen[part]["method"] == name]
            if own.empty:
                continue
            colour = "#c23b22" if name.startswith(HIGHLIGHT) else "#4477aa"
            low, high = own["median"].mean(), own["p95"].mean()
            axis.barh(place, high - low, 0.6, low, color=colour, alpha=0.35)
            axis.plot(own["mean"], np.full(len(own), place), "o", color=colour, markersize=3.5)
        axis.set(title=f"{part}: {first[part]}", xlabel="error, mm", xscale="log", xlim=_limits(chosen[part]))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis="x", which="both", color="0.92")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of an axis that holds all points and bars of some rows."""
    shown = [rows["mean"], *(rows.groupby("method")[column].mean() for column in ("median", "p95"))]
    return 0.8 * min(own.min() for own in shown), 1.25 * max(own.max() for own in shown)


def draw_overlay(pair: LandmarkPair, warped: Sequence[tuple[str, Path]], path: Path) -> None:
    """Draw the fixed image in red, and the moving one before and after registrations in green, in a coronal slice."""
    fixed = load_image(pair.fixed.image)
    assert pair.fixed.mask is not None
    lung = np.asanyarray(load_mask(pair.fixed.mask).dataobj)
    height = int(lung.sum(axis=(0, 2)).argmax())
    before = resample(load_image(pair.moving.image), fixed, Transform(()))
    panels = [("fixed", None), ("before", before), *((name, load_image(file)) for name, file in warped)]
    sizes = np.linalg.norm(fixed.affine[:3, :3], axis=0)
    figure = new_figure(3.6 * len(panels), 3.4, "white", 110)

    def shown(image: Nifti1Image) -> NDArray[np.float64]:
        low, high = WINDOW_HU
        own = np.asanyarray(image.dataobj)[:, height].astype(float).T[::-1]
        return np.clip((own - low) / (high - low), 0, 1)

    red = shown(fixed)
    for axis, (name, image) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        green = red if image is None else shown(image)
        picture = np.stack([red, green, red if image is None else np.minimum(red, green)], axis=2)
        axis.imshow(picture, aspect=sizes[2] / sizes[0])
        axis.set_title(name)
        axis.axis("off")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
