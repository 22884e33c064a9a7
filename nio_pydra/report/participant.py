"""Pages of participants: what became of their scans, with figures, measures, and the text about methods."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nio_pydra import __version__
from nio_pydra.bids.qc import DEVIATIONS, ENOUGH, Verdict, judge, measures_of
from nio_pydra.bids.records import Result, latest_results
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.report.figures import FIGURES
from nio_pydra.report.pages import render
from nio_pydra.system.files import write_changed
from nio_pydra.system.settings import flat

__all__ = ["figure_paths", "write_participant_pages"]

CHECK = (
    "pass: all measures are within the limits. look: a measure is beyond its limit, or more than "
    f"{DEVIATIONS:g} robust standard deviations from the median of the dataset (with more than {ENOUGH} scans); look "
    "at the figures. fail: the scan has no result, or one that cannot be right. A wrong registration can pass: figures "
    "decide."
)


def write_participant_pages(
    out_dir: Path, profile: Profile = BRAIN, participants: Collection[str] | None = None, *, alone: bool = False
) -> list[Path]:
    """Write ``sub-<label>.html`` of participants, from their records and figures. A page that is the same is kept.

    Parameters
    ----------
    out_dir : Path
        Derivative dataset.
    profile : Profile
        What was registered.
    participants : collection of str, optional
        As ``sub-01``. Default: all that have a record, done or failed.
    alone : bool
        Whether to read the records of these participants only, and to compare their scans with one another. Otherwise
        they are compared with the whole dataset.

    Returns
    -------
    list of Path
        The pages. A record that cannot be read is left out, and logged.
    """
    if alone and participants is not None:
        results = [result for one in participants for result in latest_results(out_dir, one, skip_damaged=True)]
    else:
        results = latest_results(out_dir, skip_damaged=True)
    verdicts, measures = judge(results, profile), measures_of(results, profile)
    own: dict[str, list[Result]] = {}
    for result in results:
        if participants is None or result.participant in participants:
            own.setdefault(result.participant, []).append(result)
    citation = out_dir / "logs" / "CITATION.md"
    # People edit these texts, with programs that may not write UTF-8.
    methods = citation.read_text(encoding="utf-8", errors="replace") if citation.exists() else ""
    written = []
    for participant, theirs in own.items():
        text = render(
            "participant.html",
            participant=participant,
            what=f"{profile.suffix} images aligned to an atlas by nio_pydra",
            check=CHECK,
            results=[_shown(out_dir, result, verdicts[result.name], measures[result.name]) for result in theirs],
            methods=methods,
            version=__version__,
        )
        written.append(write_changed(text, out_dir / f"{participant}.html"))
    return written


def figure_paths(out_dir: Path, result: Result) -> dict[str, str]:
    """Return the figures of a result that exist, by kind, as paths from the root of the dataset."""
    paths = {kind: f"{result.participant}/figures/{result.name}_{kind}.svg" for kind in FIGURES}
    return {kind: path for kind, path in paths.items() if (out_dir / path).exists()}


def _shown(out_dir: Path, result: Result, verdict: Verdict, measures: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the values that the template wants of a result."""
    figures = figure_paths(out_dir, result)
    return {
        "name": result.name,
        "scan": result.scan,
        "atlas": result.atlas,
        "method": f"{result.record['engine']} ({result.record.get('preset') or 'own settings'})",
        "verdict": verdict,
        "error": _error(out_dir, result) if result.failed else "",
        "figures": [{"path": path, "caption": FIGURES[kind]} for kind, path in figures.items()],
        "measures": measures,
        "record": [(name, _text(value)) for name, value in flat(result.record)],
    }


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _error(out_dir: Path, result: Result) -> str:
    path = out_dir / "logs" / f"{result.name}_error.txt"
    return path.read_text(encoding="utf-8") if path.exists() else result.reason
