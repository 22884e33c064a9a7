"""Tables of a comparison, in the form of the paper's Table 1, for Markdown and for the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nio_pydra.comparison import paper
from nio_pydra.comparison.cases import ALL
from nio_pydra.comparison.results import MethodDescription, Results
from nio_pydra.comparison.statistics import FEWEST_PARTICIPANTS, mark

__all__ = [
    "FOOTNOTES",
    "Cell",
    "Table",
    "cautions",
    "facts_table",
    "failures_table",
    "markdown",
    "methods_table",
    "paper_table",
    "scores_table",
    "statistics_table",
]

NONE = "–"

FOOTNOTES = {
    "bold": "Best number of a column, of the methods that have done the most cases.",
    "Dice": "Overlap of the moving image's labels, propagated to the atlas, with the atlas's own: twice the common "
    "voxels over the sum of both. Labels absent from either map are skipped; a label that gets lost on the way counts "
    "0. First the mean over the structures of a case, then the mean over cases, ± standard deviation (of a sample) if "
    "there are several.",
    "† and *": "p < 0.001 and p < 0.05 against the reference method, whether that is better or worse: Wilcoxon's "
    "signed-rank test over participants, two-sided, with Holm's correction for the number of methods.",
    "DSC30": "Mean of the lowest 30 % of the cases' Dice, as the paper has it.",
    "DSC30, Learn2Reg": "30th percentile of the cases' Dice, as the Learn2Reg challenge has it.",
    "HD95": "95 % Hausdorff distance of labels, mm; lost labels have none. Mean over structures, then over cases.",
    "std|J|": "Standard deviation of the Jacobian determinant of the deformation in the atlas's mask.",
    "folds": "Voxels of the atlas's mask where the Jacobian determinant is not positive, %: as the method gives the "
    "deformation, and after folds were removed. A method whose folds are not removed has one number.",
    "round trip": "Distance of a point of the atlas from where it ends after the forward and then the inverse "
    "transform, mm: median over voxels, mean over cases.",
    "T": "Seconds from images in memory to both transforms in memory, the same for every method: without the affine, "
    "which is common to all, the start of programs, the loading of weights, reading and writing, and measuring. "
    "Two cannot be taken apart so far: SyN's holds the writing of its fields, compressed, and NiftyReg's the start of "
    "its two programs and their files, not compressed. Mean over cases, ± standard deviation if there are several.",
    "processor": "Processor seconds of the same work, over all threads.",
    "difference": "Dice of the reference minus Dice of the method on the same case, mean. Its 95 % interval is a "
    "percentile bootstrap over participants, as scans of one person are not independent.",
    "effect": "Matched-pairs rank-biserial correlation: 1 where the reference is better for every participant, -1 "
    "where it is worse.",
}
"""What each measure is."""


@dataclass(frozen=True)
class Cell:
    """Text of one cell; `best` where it holds the best number of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table for readers.

    Attributes
    ----------
    title : str
    columns : tuple of str
    rows : tuple of tuple of Cell
        The last cell of a shorter row holds a remark in the place of all numbers that are missing.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class _Column:
    """A column of scores: heading, text and value of a row of the summary; `sign` is 1 where more is better."""

    heading: str
    text: Callable[[pd.Series], str]
    value: Callable[[pd.Series], float]
    sign: int = 1


def _number(name: str, digits: int) -> Callable[[pd.Series], str]:
    return lambda row: _fixed(row[name], digits)


def _spread(name: str, digits: int) -> Callable[[pd.Series], str]:
    return lambda row: _mean_sd(row[f"{name}_mean"], row[f"{name}_sd"], digits)


def _folds(row: pd.Series) -> str:
    raw, final = row["fold_percent_raw_mean"], row["fold_percent_mean"]
    return " / ".join(_fixed(value, 3) for value in (raw, final) if np.isfinite(value)) or NONE


def _seconds(row: pd.Series) -> str:
    return _mean_sd(row["seconds_mean"], row["seconds_sd"], 1 if row["seconds_mean"] >= 10 else 2)


def _worst_folds(row: pd.Series) -> float:
    raw = row["fold_percent_raw_mean"]
    return float(raw if np.isfinite(raw) else row["fold_percent_mean"])


OVERLAP = (
    _Column("DSC30 ↑", _number("dsc30", 3), lambda row: row["dsc30"]),
    _Column("DSC30, Learn2Reg ↑", _number("dsc30_learn2reg", 3), lambda row: row["dsc30_learn2reg"]),
    _Column("HD95 (mm) ↓", _number("hd95_mm_mean", 2), lambda row: row["hd95_mm_mean"], -1),
)
DEFORMATION = (
    _Column("std|J| ↓", _spread("std_jacobian", 3), lambda row: row["std_jacobian_mean"], -1),
    _Column("folds, raw / final (%) ↓", _folds, _worst_folds, -1),
    _Column(
        "round trip (mm) ↓",
        _number("inverse_error_median_mm_mean", 3),
        lambda row: row["inverse_error_median_mm_mean"],
        -1,
    ),
    _Column("T (s) ↓", _seconds, lambda row: row["seconds_mean"], -1),
    _Column("processor (s) ↓", _number("processor_seconds_mean", 1), lambda row: row["processor_seconds_mean"], -1),
)


def scores_table(results: Results, group: str = ALL) -> Table:
    """Return the paper's Table 1 of a group of structures.

    Deformation and time are the same for every group: they stand in the table of all structures only. They are left out
    of a row whose method does not deform.

    Parameters
    ----------
    results : Results
    group : str
        One of its groups.
    """
    whole = group == ALL
    dice = _Column("Dice ↑", lambda row: _dice(results, row), lambda row: row["dice_mean"])
    columns = (dice, *OVERLAP, *(DEFORMATION if whole else ()))
    shown = {
        name: results.summary.loc[(name, group)]
        for name in results.methods
        if (name, group) in results.summary.index and len(results.done(name))
    }
    # Cases that a method lacks can be the hard ones: it is never the best.
    most = max((len(results.done(name)) for name in shown), default=0)
    compared = {name: row for name, row in shown.items() if len(results.done(name)) == most}
    best = {column.heading: _best(results, column, compared) for column in columns}
    rows: list[tuple[Cell, ...]] = []
    for name, method in results.methods.items():
        if name not in shown:
            rows.append((Cell(name), Cell(f"no case done ({_counts(results, name)})")))
            continue
        cells = [
            Cell(column.text(shown[name]), name in best[column.heading])
            if column not in DEFORMATION or results.deforms(name)
            else Cell(NONE)
            for column in columns
        ]
        trained = [Cell(_training_data(method) + (f" ({method.weights})" if method.weights else ""))] if whole else []
        rows.append((Cell(name), *cells, Cell(_counts(results, name)), *trained))
    rows += [(Cell(name), Cell(f"left out: {reason}")) for name, reason in results.left_out.items()]
    headings = [column.heading for column in columns] + ["cases"] + (["trained on"] if whole else [])
    count = results.structure_count(group)  # not known of earlier cases alone
    return Table(f"{_group(group)}: {count}" if count else _group(group), ("Method", *headings), tuple(rows))


def statistics_table(results: Results, group: str = ALL) -> Table | None:
    """Return each method against the reference; None where nothing could be tested, which `cautions` explains."""
    if results.tests.empty:
        return None
    rows = [
        (
            Cell(str(name)),
            Cell(f"{test['pairs']:.0f} ({test['participants']:.0f})"),
            Cell(_signed(test["difference"])),
            Cell(f"{_signed(test['low'])} to {_signed(test['high'])}" if np.isfinite(test["low"]) else NONE),
            Cell(_signed(test["effect"], 2)),
            Cell(_p(test["p"])),
            Cell(_p(test["p_holm"]) + mark(test["p_holm"])),
        )
        for name, test in results.tests.xs(group, level="group").iterrows()
    ]
    columns = ("Method", "pairs (participants)", "difference", "95 % interval", "effect", "p", "p, Holm")
    return Table(f"{_group(group)}: Dice of {results.reference} minus Dice of the method", columns, tuple(rows))


def paper_table() -> Table:
    """Return Table 1 of the paper."""
    rows = tuple(tuple(Cell(text) for text in row) for row in paper.ROWS)
    return Table(f"Not ours: the paper's own numbers ({paper.MACHINE})", paper.COLUMNS, rows)


def methods_table(results: Results) -> Table:
    """Return what each method is."""
    rows: list[tuple[str, ...]] = [
        (name, method.engine, method.preset, method.changes or NONE, method.weights or NONE,
         _training_data(method), method.citation)
        for name, method in results.methods.items()
    ]  # fmt: skip
    columns = ("Method", "engine", "preset", "settings changed", "weights", "trained on", "citation")
    cells = [tuple(Cell(text) for text in row) for row in rows]
    cells += [(Cell(name), Cell(f"left out: {reason}")) for name, reason in results.left_out.items()]
    return Table("Methods", columns, tuple(cells))


def failures_table(results: Results) -> Table | None:
    """Return the cases that failed and why; None where none did."""
    rows = [
        (Cell(name), Cell(str(case["case"])), Cell(str(case["reason"])))
        for name in results.methods
        for _, case in results.failed(name).iterrows()
    ]
    return Table("Failed cases", ("Method", "case", "reason"), tuple(rows)) if rows else None


def facts_table(results: Results) -> Table:
    """Return what was compared, where, and by which versions."""
    facts = {
        "Atlas": f"{results.atlas.name} ({results.atlas.image.name})",
        "Cases": f"{len(results.scans)}: {', '.join(results.scans)}",
        "Reference method": results.reference,
        **results.machine,
    }
    for column, heading in (("device", "Device"), ("threads", "Threads"), ("precision", "Precision of networks")):
        if found := _distinct(results.cases, column):
            facts[heading] = ", ".join(found)
    affine = results.cases.get("affine_seconds", pd.Series(dtype=float)).astype(float)
    if affine.notna().any():
        facts["Affine, common to all"] = f"{_mean_sd(affine.mean(), affine.std(), 1)} s"
    if versions := _versions(results.cases):
        facts["Versions"] = "; ".join(f"{name} {', '.join(found)}" for name, found in versions.items())
    if results.command:
        facts["Command"] = results.command
    return Table("What was compared", ("", ""), tuple((Cell(name), Cell(text)) for name, text in facts.items()))


def cautions(results: Results) -> list[str]:
    """Return sentences on what readers could misread: statistics that are left out, cases that are missing."""
    found = []
    people = results.tests["participants"].max() if len(results.tests) else 0
    if len(results.scans) < FEWEST_PARTICIPANTS:
        found.append("Statistics are left out: one case only, which gives no pairs to test and no standard deviation.")
    elif not people:
        found.append(
            "Statistics are left out: no other method has cases of two participants in common with "
            f"{results.reference} on which they differ."
        )
    else:
        tested = int(results.tests.xs(ALL, level="group")["p"].notna().sum())
        smallest = min(1.0, tested * 2 * 0.5 ** float(people))
        limit = next((p for p in (0.05, 0.001) if smallest >= p), None)
        if limit is not None:
            found.append(
                f"With {people:.0f} participants and {tested} method{'s' * (tested != 1)} tested, the smallest p that "
                f"the test can give after Holm's correction is {_p(smallest)}, even where the reference is better for "
                f"every participant: {'* and † are' if limit == 0.05 else '† is'} out of reach."
            )
        if (results.tests["participants"] < results.tests["pairs"]).any():
            found.append("Some participants have several cases: the test takes the mean of each participant.")
    if alone := _without_overlap(results.cases):
        found.append(
            f"No label of {', '.join(alone)} is one of the atlas's: means of Dice and HD95 are without "
            f"{'it' if len(alone) == 1 else 'them'}."
        )
    counts = {name: len(results.done(name)) for name in results.methods}
    if fewer := [name for name, count in counts.items() if 0 < count < len(results.scans)]:
        found.append(
            f"Not every case is done by {', '.join(fewer)}: their means are over fewer cases than those of others. "
            "Tests pair only what both methods have done."
        )
    found += _mixtures(results)
    if results.not_run:
        found.append(
            f"Not run where these tables were written: {', '.join(results.not_run)}. What is shown of "
            f"{'it was' if len(results.not_run) == 1 else 'them was'} done before."
        )
    return found


def _mixtures(results: Results) -> list[str]:
    """Return sentences on cases that were not all made alike: among the methods, and within one."""
    found = []
    done = {name: results.done(name) for name in results.methods if results.deforms(name)}
    for column, what in (("threads", "numbers of threads"), ("device", "devices")):
        values = _distinct(pd.concat([pd.DataFrame(), *done.values()]), column)
        if len(values) > 1:
            found.append(f"Cases were made with several {what} ({', '.join(values)}): times do not compare.")
    for column, what in (("settings", "settings"), ("precision", "precisions"), ("weights_sha256", "weights")):
        mixed = [name for name, own in done.items() if column in own and own[column].dropna().nunique() > 1]
        if mixed:
            found.append(f"Not all cases of {', '.join(mixed)} were made with the same {what}: run them anew.")
    return found


def markdown(results: Results) -> str:
    """Return the whole comparison as text."""
    tested = [table for group in results.groups if (table := statistics_table(results, group))]
    failed = failures_table(results)
    parts = [
        f"# {results.title}",
        *(f"> {sentence}" for sentence in cautions(results)),
        *(_markdown(scores_table(results, group)) for group in results.groups),
        *map(_markdown, tested),
        *([_markdown(failed)] if failed else []),
        _markdown(methods_table(results)),
        _markdown(facts_table(results)),
        "## Measures\n\n" + "\n".join(f"- **{_escaped(name)}** {_escaped(text)}" for name, text in FOOTNOTES.items()),
        _markdown(paper_table()) + f"\n\n{paper.CITATION}. Other scans, labels and atlases than here.",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    width = len(table.columns)
    lines = [f"## {_escaped(table.title)}", "", _line(table.columns), _line(["---"] * width)]
    for row in table.rows:
        texts = [f"**{_escaped(cell.text)}**" if cell.best else _escaped(cell.text) for cell in row]
        lines.append(_line([*texts, *[""] * (width - len(row))], escape=False))
    return "\n".join(lines)


def _line(texts: Sequence[str], *, escape: bool = True) -> str:
    return "| " + " | ".join(_escaped(text) if escape else text for text in texts) + " |"


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too."""
    for sign in "\\|*_<`":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _dice(results: Results, row: pd.Series) -> str:
    sign = mark(results.tests.loc[row.name, "p_holm"]) if row.name in results.tests.index else ""
    return _mean_sd(row["dice_mean"], row["dice_sd"], 3) + sign


def _best(results: Results, column: _Column, shown: dict[str, pd.Series]) -> set[str]:
    """Return the methods with the best number of a column, as its digits show it; none where all are the same."""
    kept = {
        name: row
        for name, row in shown.items()
        if (column not in DEFORMATION or results.deforms(name)) and np.isfinite(column.value(row))
    }
    means = {name: column.text(row).split(" ± ")[0].rstrip("†*") for name, row in kept.items()}
    if len(set(means.values())) < 2:
        return set()
    first = max(kept, key=lambda name: column.sign * column.value(kept[name]))
    return {name for name, mean in means.items() if mean == means[first]}


def _counts(results: Results, name: str) -> str:
    planned, done, failed = len(results.scans), len(results.done(name)), len(results.failed(name))
    parts = [f"{done} of {planned}"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{missing} not done"] if (missing := planned - done - failed) else []
    return ", ".join(parts)


def _training_data(method: MethodDescription) -> str:
    return NONE if method.weights is None else method.training_data or "not known"


def _group(group: str) -> str:
    return f"{group.capitalize()} structures"


def _without_overlap(cases: pd.DataFrame) -> list[str]:
    """Return the cases that were done, and have no Dice because they share no label with the atlas."""
    if cases.empty:
        return []
    done = cases[cases["status"] == "done"]
    return sorted(done.loc[done.get(f"dice_{ALL}", pd.Series(np.nan, done.index)).isna(), "case"].unique())


def _distinct(cases: pd.DataFrame, column: str) -> list[str]:
    if column not in cases:
        return []
    values = cases[column].dropna()
    return sorted({f"{value:g}" if isinstance(value, int | float) else str(value) for value in values})


def _versions(cases: pd.DataFrame) -> dict[str, list[str]]:
    """Return the versions of each package and program that were at work."""
    found: dict[str, set[str]] = {}
    for text in _distinct(cases, "versions"):
        for name, version in json.loads(text).items():
            found.setdefault(name, set()).add(str(version))
    return {name: sorted(versions) for name, versions in found.items()}


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else NONE


def _mean_sd(mean: float, deviation: float, digits: int) -> str:
    if not np.isfinite(deviation):
        return _fixed(mean, digits)
    return f"{_fixed(mean, digits)} ± {_fixed(deviation, digits)}"


def _signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}" if np.isfinite(value) else NONE


def _p(value: float) -> str:
    return f"{value:.2g}" if np.isfinite(value) else NONE
