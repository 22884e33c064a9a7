"""The paper's Figure 2: slices of the moving image, of the atlas, and of what each method makes of them."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nio_pydra.comparison.cases import ALL
from nio_pydra.comparison.results import Results
from nio_pydra.report.axial import axial_view, draw_outlines
from nio_pydra.report.canvas import grey_scale, new_figure
from nio_pydra.spatial.images import load_image, load_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["choose_cases", "draw_slices"]

COLUMNS = 4
ATLAS_COLOUR, CASE_COLOUR = "#ff4d4d", "#4db8ff"
INITIAL = "affine"
"""Engine whose results are the moving image before any method."""
RESOLUTION = 130
"""Pixels per inch, of all pictures of a comparison."""


def choose_cases(results: Results) -> dict[str, str]:
    """Return the cases to show, by what they are: those of the lowest, median and highest Dice of the reference.

    Of an even number the lower of the two in the middle is the median. With fewer than three cases all are shown; with
    none done by the reference, none.
    """
    done = results.done(results.reference)
    if f"dice_{ALL}" not in done:
        return {}
    scores = done.set_index("case")[f"dice_{ALL}"].astype(float).dropna().sort_values(kind="stable")
    order = list(scores.index)
    if not order:
        return {}
    wanted = {"lowest": order[0], "highest": order[-1], "median": order[(len(order) - 1) // 2]}
    chosen: dict[str, str] = {}
    for which in ("lowest", "median", "highest"):
        chosen.setdefault(wanted[which], which)
    return {case: "only" if len(order) == 1 else which for case, which in chosen.items()}


def draw_slices(results: Results, case: str) -> Figure:
    """Draw one slice of a case: of the moving image after the affine, of the atlas, and of every method's result.

    The image after the affine is that of the engine ``affine``, and missing where that is not one of the methods.

    Parameters
    ----------
    results : Results
        Its atlas has labels. Only files that exist are read.
    case : str
        Name of a scan.

    Raises
    ------
    InputError
        If a file that exists cannot be read, or labels lie on another grid than the atlas's.
    """
    labels = load_labels(_required(results.atlas.labels))
    atlas = load_image(results.atlas.image, "atlas")
    view = axial_view(labels)
    outlined = view.cut(labels)
    initial = [name for name, method in results.methods.items() if method.engine == INITIAL]
    names = [*initial, *(name for name in results.methods if name not in initial)]
    images = {name: _find(results, name, case, of_labels=False) for name in names}
    slices = {name: view.cut(load_image(path)) for name, path in images.items() if path}
    scale = grey_scale(next(iter(slices.values()))) if slices else (0.0, 1.0)

    height, width = outlined.shape
    lines = -(-(len(names) + 1) // COLUMNS)
    panel = 2.15
    figure = new_figure(panel * COLUMNS, lines * (panel * height / width + 0.32), "black", RESOLUTION)
    axes = figure.subplots(lines, COLUMNS).ravel()
    for axis in axes:
        axis.set(xticks=[], yticks=[], facecolor="black")
        axis.spines[:].set_visible(False)
    order = [*initial, None, *(name for name in names if name not in initial)]
    for axis, name in zip(axes, order, strict=False):
        if name is None:
            shown = view.cut(atlas)
            _show(axis, shown, grey_scale(shown), f"atlas {results.atlas.name}")
        elif name in slices:
            _show(axis, slices[name], scale, _heading(results, name, case, name in initial))
            if path := _find(results, name, case, of_labels=True):
                draw_outlines(axis, view.cut(load_labels(path, like=labels)), CASE_COLOUR, 0.45)
        else:
            _show(axis, np.zeros_like(outlined), scale, _heading(results, name, case, name in initial))
            axis.text(0.5, 0.5, _absence(results, name, case), color="0.7", ha="center", transform=axis.transAxes)
            continue
        draw_outlines(axis, outlined, ATLAS_COLOUR, 0.7)
    return figure


def _show(axis: Axes, shown: NDArray[np.float64], scale: tuple[float, float], heading: str) -> None:
    axis.imshow(shown, cmap="gray", vmin=scale[0], vmax=scale[1], interpolation="bilinear")
    axis.set_title(fill(heading, 30), color="white", fontsize=8.5, pad=3)


def _heading(results: Results, name: str, case: str, initial: bool) -> str:
    heading = f"moving after {name}" if initial else name
    done = results.done(name)
    score = done.loc[done["case"] == case, f"dice_{ALL}"] if f"dice_{ALL}" in done else done.iloc[:0]
    return f"{heading}: {float(score.iloc[0]):.3f}" if len(score) and np.isfinite(float(score.iloc[0])) else heading


def _find(results: Results, name: str, case: str, *, of_labels: bool) -> Path | None:
    """Return the image of a case, or its labels, on the atlas; None where the latest run has none."""
    if not (results.done(name)["case"] == case).any():
        return None
    space = "_".join(f"{key}-{value}" for key, value in results.atlas.space.items())
    found = sorted(results.methods[name].folder.glob(f"{case.split('_')[0]}/**/{case}_{space}_desc-*.nii.gz"))
    return next((path for path in found if path.name.endswith("_dseg.nii.gz") == of_labels), None)


def _absence(results: Results, name: str, case: str) -> str:
    if (results.failed(name)["case"] == case).any():
        return "failed"
    return "image not found" if (results.done(name)["case"] == case).any() else "not done"


def _required(labels: Path | None) -> Path:
    if labels is None:
        raise ValueError("the atlas has no labels to outline")
    return labels
