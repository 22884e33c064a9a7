"""The page about all participants: distributions of measures, pictures of scans to be looked at, and a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nio_pydra import __version__
from nio_pydra.bids.qc import Verdict, judge
from nio_pydra.bids.records import Result, latest_results
from nio_pydra.profiles import BRAIN, Limits, Profile
from nio_pydra.report.pages import render
from nio_pydra.report.participant import CHECK, figure_paths
from nio_pydra.system.files import write_changed
from nio_pydra.system.wording import counted

__all__ = ["write_group_pages"]

MOST_POINTS = 500
"""Scans up to which all are points; of more, only those to be looked at."""
MOST_PICTURES = 100
BINS = 24
LEFT, RIGHT, TOP, BOTTOM = 14.0, 406.0, 26.0, 108.0
"""Edges of a plot, in pixels."""
GOLDEN = 0.618034


@dataclass(frozen=True)
class Plotted:
    """A distribution on the page, which is a column of its table as well.

    Attributes
    ----------
    title : str
        Title of the plot.
    value : callable
        Returns the number from a record, and None or raises KeyError where there is none.
    column : str
        Heading in the table.
    limit : str
        Measure whose limits are drawn; empty: none.
    """

    title: str
    value: Callable[[Mapping[str, Any]], float | None]
    column: str
    limit: str = ""


PLOTS = (
    Plotted("Similarity", lambda record: record["similarity"]["after"], "similarity", "similarity"),
    Plotted("Overlap of masks", lambda record: record["mask_overlap"], "masks", "overlap of masks"),
    Plotted(
        "Folds, % of voxels (before their removal, where they are removed)",
        lambda record: record.get("before_unfolding", record)["fold_percent"],
        "folds before removal, %",
    ),
    Plotted("Standard deviation of the Jacobian determinant", lambda record: record["std_jacobian"], "std|J|"),
    Plotted(
        "Smallest scale of the affine",
        lambda record: record["affine"]["scales"][0],
        "smallest scale",
        "smallest scale of the affine",
    ),
    Plotted(
        "Largest scale of the affine",
        lambda record: record["affine"]["scales"][-1],
        "largest scale",
        "largest scale of the affine",
    ),
    Plotted(
        "Time of affine and registration, s",
        lambda record: (record["seconds"]["affine"] or 0) + record["seconds"]["registration"],
        "time, s",
    ),
)


def write_group_pages(out_dir: Path, profile: Profile = BRAIN) -> list[Path]:
    """Write ``group_desc-<desc>_registration.html`` about the scans of all participants, for each ``desc``.

    Parameters
    ----------
    out_dir : Path
        Derivative dataset.
    profile : Profile
        What was registered.

    Raises
    ------
    InputError
        If a record cannot be read.
    """
    results = latest_results(out_dir)
    verdicts = judge(results, profile)
    written = []
    for desc in dict.fromkeys(result.entities["desc"] for result in results):
        own = [result for result in results if result.entities["desc"] == desc]
        name = f"group_desc-{desc}_registration"
        text = render(
            "group.html",
            desc=desc,
            what=f"{profile.suffix} images aligned to an atlas by nio_pydra",
            table=f"{name}.tsv",
            check=CHECK,
            columns=[plot.column for plot in PLOTS],
            atlases=[
                _atlas(out_dir, atlas, [result for result in own if result.atlas == atlas], verdicts, profile)
                for atlas in dict.fromkeys(result.atlas for result in own)
            ],
            version=__version__,
        )
        written.append(write_changed(text, out_dir / f"{name}.html"))
    return written


def _atlas(
    out_dir: Path, atlas: str, results: Sequence[Result], verdicts: Mapping[str, Verdict], profile: Profile
) -> dict[str, Any]:
    """Return the values that the template wants of the scans aligned to one atlas."""
    order = ("fail", "look", "pass")
    ranked = sorted(results, key=lambda result: (order.index(verdicts[result.name].status), result.name))
    flagged = [result for result in ranked if verdicts[result.name].status != "pass"]
    counts = Counter(verdicts[result.name].status for result in results)
    return {
        "name": atlas,
        "scans": counted(len(results), "scan"),
        "participants": counted(len({result.participant for result in results}), "participant"),
        "counts": {status: counts[status] for status in ("pass", "look", "fail") if counts[status]},
        "plots": [plot for each in PLOTS if (plot := _plot(each, results, verdicts, profile))],
        "flagged": [
            _row(result, verdicts) | {"picture": _picture(out_dir, result)} for result in flagged[:MOST_PICTURES]
        ],
        "more": max(0, len(flagged) - MOST_PICTURES),
        "results": [_row(result, verdicts) for result in ranked],
    }


def _row(result: Result, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    values = [_value(plot, result) for plot in PLOTS]
    return {
        "scan": result.scan,
        "link": _link(result),
        "status": verdicts[result.name].status,
        "reasons": "; ".join(verdicts[result.name].reasons),
        "numbers": ["" if value is None else f"{value:.3g}" for value in values],
    }


def _link(result: Result) -> str:
    return f"{result.participant}.html#{result.name}"


def _picture(out_dir: Path, result: Result) -> str | None:
    return figure_paths(out_dir, result).get("registration")


def _value(plot: Plotted, result: Result) -> float | None:
    """Return the number of a plot; None for a scan that failed, and in records of versions that did not measure it."""
    if result.failed:
        return None
    with suppress(KeyError):
        return plot.value(result.record)
    return None


def _plot(
    plot: Plotted, results: Sequence[Result], verdicts: Mapping[str, Verdict], profile: Profile
) -> dict[str, Any] | None:
    """Return positions of the bars, points, limits and ticks of a plot. None where there are no numbers."""
    shown = [(result, value) for result in results if (value := _value(plot, result)) is not None]
    if not shown:
        return None
    values = np.array([value for _, value in shown])
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    ends = (low - margin, high + margin)

    def across(value: float) -> float:
        return round(LEFT + (value - ends[0]) / (ends[1] - ends[0]) * (RIGHT - LEFT), 1)

    counts, edges = np.histogram(values, BINS, ends)
    heights = counts / counts.max() * (BOTTOM - TOP)
    points = []
    for number, (result, value) in enumerate(shown):
        status = verdicts[result.name].status
        if len(shown) <= MOST_POINTS or status != "pass":
            # Evenly spread and always the same, so that points do not hide each other.
            y = round(BOTTOM - 4 - (number * GOLDEN % 1) * (BOTTOM - TOP - 4), 1)
            text = f"{result.scan}: {value:.4g} ({status})"
            points.append({"x": across(value), "y": y, "status": status, "text": text, "link": _link(result)})
    limits = profile.limits.get(plot.limit, Limits()).look
    return {
        "title": plot.title,
        "bars": [
            {
                "x": across(left),
                "width": round(across(right) - across(left) - 1, 1),
                "height": round(height, 1),
                "y": round(BOTTOM + 4 - height, 1),
            }
            for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True)
            if height
        ],
        "limits": [across(value) for value in limits if ends[0] <= value <= ends[1]],
        "points": sorted(points, key=lambda point: point["status"] != "pass"),
        "lowest": f"{low:.3g}",
        "median": f"{np.median(values):.3g}",
        "highest": f"{high:.3g}",
    }
