"""Pictures of a comparison's numbers: box plots, Dice over time, Dice over regularity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nio_pydra.comparison.cases import ALL
from nio_pydra.comparison.results import Results
from nio_pydra.comparison.slices import RESOLUTION, choose_cases, draw_slices
from nio_pydra.report.axial import HEIGHT
from nio_pydra.report.canvas import new_figure
from nio_pydra.system.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Picture", "draw_boxes", "draw_regularity", "draw_times", "write_figures"]

COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22",
)  # fmt: skip
REFERENCE_COLOUR = "#222222"
MARKERS = "osD^v"
"""The next one is taken when all colours are."""
SMALLEST_SPAN = 6.0
"""Longest by shortest time of an axis. At least two of 1, 2, 5, 10, ... lie between them."""
LABEL_SIZE = 8.5
"""Of names beside points, in points of print."""


@dataclass(frozen=True)
class Picture:
    """A picture that is written.

    Attributes
    ----------
    path : Path
        PNG.
    title : str
    caption : str
        What it shows, and the rules behind it.
    """

    path: Path
    title: str
    caption: str


def write_figures(results: Results, folder: Path) -> list[Picture]:
    """Draw all pictures of a comparison.

    Parameters
    ----------
    results : Results
    folder : Path
        Takes ``boxes.png``, ``seconds.png``, ``regularity.png`` and ``slices_<which>.png``; made where it is absent.

    Returns
    -------
    list of Picture
        Empty where no case has a Dice. Without labels of the atlas there are no slices, and without a method that
        deforms there is no Dice over time or regularity.

    Raises
    ------
    InputError
        If an image cannot be read, or the folder cannot be written.
    """
    import matplotlib

    if not any(len(_values(results.done(name), f"dice_{ALL}")) for name in results.methods):
        return []
    with matplotlib.rc_context({"text.parse_math": False}):  # names of methods can hold dollar signs
        return _draw_all(results, folder)


def _draw_all(results: Results, folder: Path) -> list[Picture]:
    pictures = [
        Picture(
            _write(draw_boxes(results), folder / "boxes.png"),
            "Dice of every case",
            "Boxes: quartiles and median. Whiskers: the farthest case within 1.5 times the box. Points: the cases, "
            f"each the mean over its structures. Dashed: the median of {results.reference}.",
        ),
    ]
    if any(_point(results, name, "seconds") for name in results.methods):
        pictures.append(
            Picture(
                _write(draw_times(results), folder / "seconds.png"),
                "Dice over time",
                "Mean over cases, bars if there are several: one standard deviation. Seconds are T of the table: "
                "without the affine, which is common to all. Where settings alone tell methods apart, a line joins "
                "them and one name stands for them.",
            )
        )
    if any(_point(results, name, "std_jacobian") for name in results.methods):
        pictures.append(
            Picture(
                _write(draw_regularity(results), folder / "regularity.png"),
                "Dice over regularity",
                "Mean over cases. The smaller std|J|, the smoother the deformation: of two methods the better one is "
                "above and to the left. A line joins methods of one engine, preset and weights that differ in their "
                "settings, in order of std|J|.",
            )
        )
    if results.atlas.labels is None:
        return pictures
    for case, which in choose_cases(results).items():
        chosen = "the only case" if which == "only" else f"the case with the {which} Dice of {results.reference}"
        pictures.append(
            Picture(
                _write(draw_slices(results, case), folder / f"slices_{which}.png"),
                f"{case}, {chosen}",
                "Red: outlines of the atlas's labels. Blue, thinner: the labels of the case where the method brings "
                f"them. The rule: cases are those with the lowest, the median and the highest Dice of "
                f"{results.reference}; the slice is axial, at {HEIGHT:.0%} of the height of the atlas's labels, with "
                "the subject's left on the left. The scan has one grey scale in all its pictures, the atlas its own by "
                "the same rule (0.5th to 99.5th percentile of the slice). Numbers: Dice of this case.",
            )
        )
    return pictures


def draw_boxes(results: Results) -> Figure:
    """Draw box plots of Dice, a panel for each group of structures, methods from top to bottom in their order."""
    names = list(results.methods)
    figure = new_figure(3.0 + 2.9 * len(results.groups), 1.2 + 0.34 * len(names), "white", RESOLUTION)
    axes = np.atleast_1d(figure.subplots(1, len(results.groups), sharey=True))
    colours = _styles(results)
    for axis, group in zip(axes, results.groups, strict=True):
        for place, name in enumerate(names):
            values = _values(results.done(name), f"dice_{group}")
            colour = colours[name][0]
            if not len(values):
                axis.text(0.5, place, _absence(results, name), transform=axis.get_yaxis_transform(), color="0.5",
                          ha="center", va="center", fontsize=LABEL_SIZE)  # fmt: skip
                continue
            box = axis.boxplot(values, positions=[place], orientation="horizontal", widths=0.62, showfliers=False,
                               patch_artist=True, manage_ticks=False)  # fmt: skip
            box["boxes"][0].set(facecolor=colour, alpha=0.35)
            box["medians"][0].set(color="black", linewidth=1.6)
            # Spread by rank, so that equal data give equal pictures.
            spread = place + 0.36 * ((np.arange(len(values)) * 0.618) % 1 - 0.5)
            axis.plot(values, spread, "o", color=colour, markersize=3.2, markeredgecolor="white", markeredgewidth=0.4,
                      zorder=5)  # fmt: skip
        if len(median := _values(results.done(results.reference), f"dice_{group}")):
            axis.axvline(np.median(median), color="0.35", linewidth=0.9, linestyle="--", zorder=0)
        axis.set(title=f"{group} ({results.structure_count(group)})", xlabel="Dice")
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def draw_times(results: Results) -> Figure:
    """Draw Dice over seconds, a point for each method that deforms; the others as lines across."""
    return _scatter(results, "seconds", "seconds per case, without the affine", bars=True)


def draw_regularity(results: Results) -> Figure:
    """Draw Dice over std|J|, a point for each method that deforms; the others as lines across."""
    return _scatter(results, "std_jacobian", "std|J|, standard deviation of the Jacobian determinant", bars=False)


def _scatter(results: Results, measure: str, heading: str, *, bars: bool) -> Figure:
    """Draw Dice over a measure; times on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(7.6, 5.0, "white", RESOLUTION)
    axis = figure.subplots()
    axis.set(xlabel=heading, ylabel="Dice, all structures")
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.margins(x=0.12, y=0.12)
    if measure == "seconds":
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    styles = _styles(results)
    points = {name: point for name in results.methods if (point := _point(results, name, measure)) is not None}
    if measure == "seconds" and points:
        low = min(point.x - point.x_sd for point in points.values())
        high = max(point.x + point.x_sd for point in points.values())
        if high < SMALLEST_SPAN / 2 * low:
            middle, half = math.sqrt(low * high), math.sqrt(SMALLEST_SPAN)
            axis.set_xlim(middle / half, middle * half)
    families = _families(results, points)
    obstacles = [np.empty((0, 2))]
    for family in families:
        line = np.array(sorted((points[name].x, points[name].y) for name in family))
        colour, marker = styles[family[0]]
        axis.plot(*line.T, color=colour, linewidth=1.3)
        obstacles.append(_along(line))
        for name in family:
            point = points[name]
            if bars:
                axis.errorbar(point.x, point.y, xerr=point.x_sd, yerr=point.y_sd, fmt="none", ecolor=colour,
                              elinewidth=0.8, alpha=0.6)  # fmt: skip
                up, along = np.array([0, point.y_sd]), np.array([point.x_sd, 0])
                obstacles += [_along(point.place + np.outer([-1, 1], bar)) for bar in (up, along)]
            of_reference = name == results.reference
            axis.plot(point.x, point.y, marker, color=colour, markersize=9 if of_reference else 6.5,
                      markeredgecolor="black" if of_reference else "white", markeredgewidth=1.2)  # fmt: skip
    _draw_levels(axis, results, [name for name in results.methods if name not in points])
    _name_points(figure, axis, points, families, np.concatenate(obstacles))
    return figure


def _draw_levels(axis: Axes, results: Results, names: Sequence[str]) -> None:
    """Draw the Dice of methods that do not deform as lines across, or say it where it lies below the picture."""
    low, high = axis.get_ylim()
    below = []
    for name in names:
        overlap = _values(results.done(name), f"dice_{ALL}")
        if len(overlap) and low < overlap.mean() < high:
            axis.axhline(overlap.mean(), color="0.4", linestyle="--", linewidth=1)
            axis.annotate(name, (0.01, overlap.mean()), xycoords=("axes fraction", "data"), xytext=(0, 2),
                          textcoords="offset points", fontsize=LABEL_SIZE, color="0.3")  # fmt: skip
        elif len(overlap):
            below.append(f"{name} {overlap.mean():.3f}")
    if below:
        axis.text(0.01, 0.015, f"not shown: {', '.join(below)}", transform=axis.transAxes, fontsize=LABEL_SIZE,
                  color="0.3")  # fmt: skip


@dataclass(frozen=True)
class _Point:
    """Mean and standard deviation of a measure and of Dice."""

    x: float
    y: float
    x_sd: float
    y_sd: float

    @property
    def place(self) -> NDArray[np.float64]:
        return np.array([self.x, self.y])


def _point(results: Results, name: str, measure: str) -> _Point | None:
    """Return the point of a method; None where it has done nothing, or does not deform."""
    done = results.done(name)
    x, y = _values(done, measure), _values(done, f"dice_{ALL}")
    if not results.deforms(name) or not len(x) or not len(y):
        return None
    x_sd, y_sd = (float(values.std(ddof=1)) if len(values) > 1 else 0.0 for values in (x, y))
    # A bar down to zero has no place on a logarithmic axis.
    return _Point(float(x.mean()), float(y.mean()), min(x_sd, 0.95 * float(x.mean())), y_sd)


def _along(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return many points along a line through points, ``(N, 2)``."""
    at = np.linspace(0, len(line) - 1, 40 * (len(line) - 1) + 1)
    return np.stack([np.interp(at, np.arange(len(line)), column) for column in line.T], axis=1)


def _families(results: Results, shown: Mapping[str, object]) -> list[list[str]]:
    """Return the names of methods that are shown, together where they differ in settings only."""
    families: dict[object, list[str]] = {}
    for name, method in results.methods.items():
        if name in shown:
            # The path, as weights of different trainings often have one file name.
            weights = name.partition("?")[0].partition("@")[2]
            families.setdefault((method.engine, method.preset, weights), []).append(name)
    return list(families.values())


def _styles(results: Results) -> dict[str, tuple[str, str]]:
    """Return colour and marker of every method; one for those that differ in settings only."""
    families = _families(results, results.methods)
    styles = iter([(colour, marker) for marker, colour in product(MARKERS, COLOURS)] * len(families))
    found: dict[str, tuple[str, str]] = {}
    for family in families:
        style = (REFERENCE_COLOUR, MARKERS[0]) if results.reference in family else next(styles)
        found |= dict.fromkeys(family, style)
    return found


def _name_points(
    figure: Figure,
    axis: Axes,
    points: Mapping[str, _Point],
    families: Sequence[Sequence[str]],
    obstacles: NDArray[np.float64],
) -> None:
    """Write names beside points, each near one of its own and where it covers no other name, point or line.

    Parameters
    ----------
    figure, axis
    points : mapping of str to _Point
    families : sequence of sequence of str
        Names that share one label.
    obstacles : ndarray
        Points of lines, ``(N, 2)``, in units of the axes.
    """
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names must not move the axes that their places are found in
    pixels = figure.dpi / 72
    frame = np.array(axis.get_window_extent().extents)
    centres = {name: axis.transData.transform(point.place) for name, point in points.items()}
    boxes = [_box(centre, 10 * pixels, 10 * pixels) for centre in centres.values()]
    boxes += [np.array(text.get_window_extent().extents) for text in axis.texts]
    boxes += [_box(place, 3 * pixels, 3 * pixels) for place in axis.transData.transform(obstacles)]
    taken = np.stack(boxes)
    for family in families:
        text = axis.annotate(
            _common_name(family), tuple(points[family[0]].place), xytext=(0, 0), textcoords="offset points",
            fontsize=LABEL_SIZE, ha="center", va="center",
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip
        extent = text.get_window_extent()
        best = (np.inf, family[0], np.zeros(2), np.zeros(4))
        for name in family:
            for shift in _shifts(extent.width, extent.height, pixels):
                box = _box(centres[name] + shift, extent.width + 2 * pixels, extent.height)
                beside = np.maximum(np.abs(shift) - (extent.width / 2, extent.height / 2), 0)
                distance = float(np.hypot(*beside)) / pixels  # of the name's edge, so that long names can stand beside
                cost = 10 * (_covered(box, taken) + _outside(box, frame)) + distance * pixels**2
                if cost < best[0]:
                    best = (cost, name, shift, box)
        _, name, shift, box = best
        text.xy = tuple(points[name].place)
        text.set_position(tuple(shift / pixels))
        taken = np.vstack([taken, box])


def _common_name(family: Sequence[str]) -> str:
    """Return the one name, or what stands before the settings that tell several apart."""
    return family[0] if len(family) == 1 else f"{family[0].split('?')[0]} ({len(family)} settings)"


def _shifts(width: float, height: float, pixels: float) -> list[NDArray[np.float64]]:
    """Return places of a name around its point, from near to far, in pixels."""
    directions = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    return [
        np.array([x * (width / 2 + gap * pixels), y * (height / 2 + gap * pixels)])
        for gap in (7, 12, 20, 32, 48, 70, 100)
        for x, y in directions
    ]


def _box(centre: NDArray[np.float64], width: float, height: float) -> NDArray[np.float64]:
    """Return left, bottom, right and top."""
    half = np.array([width, height]) / 2
    return np.concatenate([centre - half, centre + half])


def _covered(box: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return the area of a box that others, ``(N, 4)``, cover."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.clip(sides, 0, None).prod(axis=1).sum())


def _outside(box: NDArray[np.float64], frame: NDArray[np.float64]) -> float:
    """Return the area of a box that lies outside a frame."""
    return float((box[2:] - box[:2]).prod()) - _covered(box, frame[None])


def _values(cases: pd.DataFrame, column: str) -> NDArray[np.float64]:
    if column not in cases:
        return np.empty(0)
    return cases[column].astype(float).dropna().to_numpy()


def _absence(results: Results, name: str) -> str:
    if len(results.failed(name)):
        return "failed"
    return "no common label" if len(results.done(name)) else "not done"


def _write(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=figure.dpi)
    return path
