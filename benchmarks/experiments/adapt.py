"""Adaptation: what the test scans gain when LapIRN was adapted to training scans of their dataset, and what it costs.

Weights are adapted by `nio adapt` to 1, 2, 5, 10 and 14 scans of the `train` split, which are kept in
`OUT/adapt_weights`, and tried on the eight test scans, on another atlas, on scans of other origin and on changed
scans. Cases of other methods are those of experiments 1 to 4.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from common import DOCS, Comparison, cases_of_tables, gpu_name, oasis, publish, published, read_options, run, table
from experiment_3 import comparisons as of_other_origin
from experiment_4 import CHANGES
from experiment_4 import comparisons as with_changes

from nio_pydra.comparison.statistics import mean_of_lowest
from nio_pydra.networks.checkpoints import adaptation_of
from nio_pydra.report.canvas import new_figure
from nio_pydra.system.cores import processor_name
from nio_pydra.system.files import atomic_path, write_text

ATLAS, OTHER_ATLAS = "1000", "1010"
TRAIN = (
    "1001", "1002", "1006", "1007", "1008", "1009", "1010", "1011", "1012", "1013", "1014", "1015", "1017", "1036",
)  # fmt: skip
"""The `train` split without the atlas."""
USUAL = 5
"""Number of scans of the weights that are tried elsewhere."""
KNOWN = ("affine", "niftyreg", "greedy", "lapirn", "io", "nio_m", "nio_m:fast")
MANY = 2000
COSTS = DOCS / "results" / "adapt_costs.tsv"
MARKS = ("<!-- costs -->", "<!-- end of costs -->")
"""Around what this script writes into docs/adapt.md."""
CHANGED = ("inverted", "bias", "noise")
NOTES = f"""\
`@adapted_N.safetensors` are the package's weights, adapted by `nio adapt` with its defaults to N scans of the `train`
split and the atlas sub-{ATLAS}; a fifth of the N, at least one of two, is held out to stop on and not learned from. No
label is used. `lapirn` is the network alone, `nio_m:adapted` adds the short refinement of the field that the preset
`adapted` has; neither takes steps of the network. Default weights, schedule and number of steps were chosen on the
`train` split: sub-1036 as a hidden scan, with five others to learn from.

Methods without `@` come from [experiment 1](experiment_1.md), elsewhere from experiments 2 to 4, with the same seed of
the affine. Machines were loaded and some had a GPU, so seconds do not compare methods here:
[the whole way of a scan](whole_way.md) does.

One scan is enough: `nio_m:adapted` has a Dice of 0.650 to 0.652 with 1 to 14 scans, and of 0.650 after 60 steps at
level 1 alone. These differences are small beside those between scans (0.010), and one draw of each number was tried.
More scans help the network alone, from 0.638 with one to 0.642 with ten. The price is paid at another atlas, where
`nio_m:adapted` is 0.005 behind `nio_m:fast`, and with scans of another origin (0.005 as well, two scans). Noise, bias
and inverted contrast cost it nothing: there it is ahead of `fast`, as on unchanged scans."""


@dataclass(frozen=True)
class Point:
    """Weights to adapt.

    Attributes
    ----------
    scans : int
        Number of scans drawn.
    iterations : tuple of int or None
        Steps at the levels. None: the defaults.
    """

    scans: int
    iterations: tuple[int, int, int] | None = None

    @property
    def file(self) -> str:
        """Name of the weights."""
        steps = "" if self.iterations is None else "_" + "-".join(map(str, self.iterations))
        return f"adapted_{self.scans}{steps}.safetensors"

    @property
    def methods(self) -> tuple[str, str]:
        """What the weights are tried by."""
        return f"lapirn@{self.file}", f"nio_m:adapted@{self.file}"


POINTS = (Point(5), Point(2), Point(14), Point(1), Point(10), Point(5, (60, 0, 0)))
"""In the order in which they are worth running."""


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Return the comparison on the test scans, and those elsewhere."""
    tried = [method for point in POINTS for method in point.methods]
    usual = next(point for point in POINTS if point.scans == USUAL).methods
    home = oasis(
        options.data, "adapt", f"Adaptation: eight test scans of OASIS to sub-{ATLAS}", (*KNOWN, *tried), atlas=ATLAS
    )
    elsewhere = ("affine", "lapirn", usual[0], "nio_m:fast", usual[1])
    other = replace(
        oasis(
            options.data, "adapt_atlas", f"Adapted to sub-{ATLAS}, used with sub-{OTHER_ATLAS}", (), atlas=OTHER_ATLAS
        ),
        methods=elsewhere,
    )
    origin = replace(of_other_origin(options)[0], name="adapt_origin", methods=elsewhere)
    changed = replace(with_changes(options)[1], name="adapt_changes", methods=elsewhere)
    shifts = [replace(changed, name=f"adapt_{change}", filters={"acquisition": change}) for change in CHANGED]
    return [home, other, origin, *shifts]


def adapt(options: argparse.Namespace, home: Comparison, point: Point) -> None:
    """Adapt weights that are absent, and note what that cost beside the affines, which all methods share."""
    out = options.weights / point.file
    if out.is_file() or _is_published(options, home, point):
        return
    words = [
        *(str(home.dataset), "--atlas", str(home.atlas), "--atlas-name", home.atlas_name, "--skull-stripped"),
        *("--bids-filter-file", str(options.out / "adapt_filter.json"), "--participant-label", *TRAIN),
        *("--n-scans", str(point.scans), "--work-dir", str(options.work or options.out / "work")),
        *("--device", options.device),
    ]  # fmt: skip
    aligned = options.weights / f"aligned_{point.scans}.safetensors"
    if not aligned.is_file():
        _nio("adapt", *words, str(aligned), "--iterations", "1", "0", "0", "--nprocs", "2", "--omp-nthreads", "1")
    steps = [] if point.iterations is None else ["--iterations", *map(str, point.iterations)]
    cores = options.nprocs * options.threads
    began, before = time.perf_counter(), _processor_seconds()
    _nio("adapt", *words, str(out), *steps, "--nprocs", "1", "--omp-nthreads", str(cores))
    spent = {
        "seconds": time.perf_counter() - began,
        "processor_seconds": _processor_seconds() - before,
        "load": os.getloadavg()[1],
        "processor": processor_name(),
        "gpu": gpu_name() if options.device != "cpu" else None,
    }
    write_text(json.dumps(spent, indent=1) + "\n", out.with_suffix(".json"))


def _is_published(options: argparse.Namespace, home: Comparison, point: Point) -> bool:
    """Return whether the published tables hold all cases of the weights, so that they need not be adapted again."""
    path = published(options, replace(home, methods=point.methods))
    known = 0 if path is None else len(pd.read_csv(path, sep="\t"))
    return known == len(point.methods) * len(home.participants)


def _nio(*words: str) -> None:
    command = [sys.executable, "-c", "import sys; from nio_pydra.cli.nio import main; sys.exit(main(sys.argv[1:]))"]
    subprocess.run([*command, *words], check=True)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _by_all(cases: pd.DataFrame) -> pd.DataFrame:
    """Return the cases of the methods that have done as many as any: means over fewer do not compare."""
    counts = cases.groupby("method")["case"].transform("count")
    return cases[counts == counts.max()]


def _rows(cases: pd.DataFrame) -> Iterator[tuple[str, list[float]]]:
    for method, own in cases.groupby("method", sort=False):
        overlap = own["dice_all"].dropna()
        means = [float(own[name].mean()) for name in ("std_jacobian", "fold_percent_raw")]
        yield str(method), [float(overlap.mean()), float(mean_of_lowest(overlap)), *means]


def _costs(options: argparse.Namespace) -> pd.DataFrame:
    """Return what each adaptation cost and what it says of itself: of the weights here, else as it was published."""
    published = pd.read_csv(COSTS, sep="\t").set_index("weights") if COSTS.is_file() else pd.DataFrame()
    rows = []
    for point in POINTS:
        path = options.weights / point.file
        cost = path.with_suffix(".json")
        if cost.is_file():
            adapted, spent = adaptation_of(path) or {}, json.loads(cost.read_text())
            row = {"weights": point.file, "scans": adapted["scans"], "held_out": adapted["held_out"]}
            row |= {"steps": " + ".join(map(str, adapted["steps"]))}
            row |= {"score_before": adapted.get("score_before"), "score": adapted.get("score")}
            row |= {"processor_minutes": spent["processor_seconds"] / 60, "minutes": spent["seconds"] / 60}
            rows.append(row | {"load": spent["load"], "on": spent["gpu"] or spent["processor"]})
        elif point.file in published.index:
            rows.append({"weights": point.file, **published.loc[point.file]})
    return pd.DataFrame(rows, columns=None if rows else ["weights", "processor_minutes"])


def _adaptations(costs: pd.DataFrame) -> str:
    """Return the table of what adaptations cost and what they said of themselves."""
    lines = [
        "## What the adaptations cost", "",
        "The affines of the scans come before: they are used again by the registration. The score is the loss "
        "of the held-out scans with the opposite sign. The machine did other work as well, as the load says.", "",
        "| Weights | scans | held out | steps kept | score before | after | processor minutes | minutes | load | on |",
        "| --- " * 10 + "|",
    ]  # fmt: skip
    for _, row in costs.iterrows():
        scores = [f"{row[name]:.4f}" if pd.notna(row[name]) else "–" for name in ("score_before", "score")]
        times = [f"{row[name]:.1f}" for name in ("processor_minutes", "minutes", "load")]
        cells = [f"`{row['weights']}`", row["scans"], row["held_out"], row["steps"], *scores, *times, row["on"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _price(costs: pd.DataFrame, cases: pd.DataFrame) -> str:
    """Return what many scans cost, for the page that users read."""
    point = next(point for point in POINTS if point.scans == USUAL)
    dice, adapted = cases.groupby("method")["dice_all"].mean(), point.methods[1]
    known = costs.set_index("weights")
    if point.file not in known.index or not {adapted, "nio_m:fast", "greedy"} <= set(dice.index):
        return "Not measured yet."
    once, machine = known.loc[point.file, ["processor_minutes", "on"]]
    names = {adapted: "adapted", "nio_m:fast": "`fast`", "greedy": "greedy"}
    rows = {adapted: r"nio\_m `adapted`", "nio_m:fast": r"nio\_m `fast`", "greedy": "greedy"}
    seconds = {method: _seconds(row) for method, row in rows.items()}
    lines = [
        f"Processor time, without the affine, which all methods need: once, to adapt to {USUAL} scans on an {machine}; "
        "for a scan, registration and inverse, as [the whole way of a scan](results/whole_way.md) has them and on the "
        f"machine that it names. Dice is the mean of {len(cases[cases['method'] == adapted])} test scans. Written by "
        f"`benchmarks/experiments/adapt.py`, {time.strftime('%Y-%m-%d')}.",
        "",
        f"| | once, minutes | a scan, seconds | {MANY} scans, hours | Dice |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, name in names.items():
        first = once if method == adapted else 0.0
        hours = (60 * first + MANY * seconds[method]) / 3600
        lines.append(f"| {name} | {first:.1f} | {seconds[method]:.0f} | {hours:.1f} | {dice[method]:.3f} |")
    saved = seconds["nio_m:fast"] - seconds[adapted]
    if saved > 0:
        lines += ["", f"The adaptation has paid for itself after {int(np.ceil(60 * once / saved))} scans."]
    return "\n".join(lines)


def _seconds(name: str) -> float:
    """Return the processor seconds of registration and inverse on the page of the whole way, all made in one run."""
    table = (DOCS / "results" / "whole_way.md").read_text().partition("## Processor seconds")[2]
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if "|" in line]
    place = {heading: number for number, heading in enumerate(lines[0])}
    row = next(cells for cells in lines if cells[0] == name)
    return sum(float(row[place[name]]) for name in ("registration", "inverse"))


def _write_costs(text: str) -> None:
    page = DOCS / "adapt.md"
    before, rest = page.read_text().split(MARKS[0])
    write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}", page)


def _elsewhere(options: argparse.Namespace, others: list[Comparison]) -> str:
    """Return the table of what weights adapted to another atlas or other images cost."""
    columns, found = [], []
    for own in others:
        if (options.out / own.name / "cases.tsv").is_file():
            cases = _by_all(cases_of_tables(options, own))
            columns.append(own.name.removeprefix("adapt_"))
            found.append(cases.groupby("method", sort=False)["dice_all"].mean())
    if not found:
        return "## Elsewhere\n\nNot run yet."
    means = pd.concat(found, axis=1)
    rows = [(str(method), list(values)) for method, values in means.iterrows()]
    about = (
        f"`atlas`: the test scans to sub-{OTHER_ATLAS}, to which the weights were not adapted. `origin`: the scans of "
        "[experiment 3](experiment_3.md). The others: test scans with the changes of [experiment 4](experiment_4.md), "
        f"of which there are {', '.join(name for name in CHANGES if name in CHANGED)}."
    )
    return table("Elsewhere: Dice where the weights were adapted to something else", columns, rows) + f"\n\n{about}"


def _draw(cases: pd.DataFrame, costs: pd.DataFrame, path: Path) -> None:
    """Draw Dice over the number of scans, and over the time that the adaptations took."""
    spent = costs.set_index("weights")["processor_minutes"]
    dice = cases.groupby("method", sort=False)["dice_all"].mean()
    figure = new_figure(10, 4, "white", 130)
    left, right = figure.subplots(1, 2, sharey=True)
    for place, (name, colour) in enumerate((("lapirn", "#1f77b4"), ("nio_m:adapted", "#222222"))):
        points = sorted(
            (point.scans, dice[point.methods[place]])
            for point in POINTS
            if point.iterations is None and point.methods[place] in dice
        )
        if points:
            left.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{name}, adapted")
    for method, style in (("lapirn", ":"), ("greedy", "-."), ("nio_m", "-"), ("nio_m:fast", "--")):
        if method in dice:
            left.axhline(dice[method], linestyle=style, color="0.5", linewidth=1, label=method)
    left.set(xlabel="scans adapted to", ylabel="Dice, mean of the test scans")
    left.legend(fontsize=7)
    for place, colour in ((0, "#1f77b4"), (1, "#222222")):
        for point in POINTS:
            if point.methods[place] in dice and point.file in spent.index:
                right.plot(spent[point.file], dice[point.methods[place]], "o", color=colour)
                name = point.file.removesuffix(".safetensors").removeprefix("adapted_")
                right.annotate(name, (spent[point.file], dice[point.methods[place]]), xytext=(4, 4),
                               textcoords="offset points", fontsize=7)  # fmt: skip
    right.set(xlabel="processor minutes of the adaptation")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def main() -> int:
    """Adapt, register and write the page, or a part of it."""
    options = read_options(__doc__)
    options.changes = None  # all of experiment 4
    options.weights = options.out / "adapt_weights"
    options.weights.mkdir(parents=True, exist_ok=True)
    os.chdir(options.weights)
    planned = comparisons(options)
    home = planned[0]
    home.options(options)  # writes the filter of first visits
    if not options.tables_only:
        whole = argparse.Namespace(**{**vars(options), "register_only": True})
        for point in POINTS:
            chosen = replace(home, methods=point.methods)
            if options.methods and not set(options.methods.split(",")) & set(point.methods):
                continue
            adapt(options, home, point)
            run(whole, [chosen])
            if point == POINTS[1]:  # the usual point and one more first
                run(whole, planned[1:])
        run(whole, planned[1:])
    if options.register_only:
        return 0
    tables = argparse.Namespace(**{**vars(options), "tables_only": True})
    written = run(tables, planned)
    if options.publish:
        cases, costs = _by_all(cases_of_tables(options, home)), _costs(options)
        if len(costs):
            with atomic_path(COSTS) as temporary:
                costs.to_csv(temporary, sep="\t", index=False, float_format="%.4f")
        _draw(cases, costs, DOCS / "images" / "adapt_scans.png")
        columns = ("Dice", "DSC30", "std(J)", "raw folds, %")
        own = "\n\n".join(
            (
                "![Dice over scans and over the time of the adaptation](../images/adapt_scans.png)",
                table("Test scans", columns, _rows(cases)),
                _adaptations(costs),
                _elsewhere(options, [own for own in written if own.name != home.name]),
            )
        )
        publish(options, "adapt", home, NOTES, before=own, others=[own for own in written if own.name != home.name])
        _write_costs(_price(costs, cases))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
