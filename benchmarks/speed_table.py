"""From the runs of `speed.py` to its table: rows, medians over pairs, and the figures with their targets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["Figure", "figures", "write_table"]

#: Column of the table to (key of a run, format).
COLUMNS = {
    "Dice": ("dice", ".4f"),
    "Dice, lowest 30 % of labels": ("dice_lowest", ".4f"),
    "similarity": ("similarity", ".4f"),
    "folds %": ("fold_percent", ".3f"),
    "seconds": ("seconds", ".1f"),
    "processor seconds": ("processor_seconds", ".1f"),
    "peak MB": ("peak_memory_mb", ".0f"),
}
TIMES = ("seconds", "processor_seconds")
PAIRS_NEEDED = 3
BYTES_PER_MB = 2**20  # the records' MB
BYTES_PER_GB = 1e9  # the targets' GB, taken strictly
PAPER, PLAIN = "nio_m paper", "nio_m paper float32"
NOTES = """
Written by `benchmarks/speed.py`. One brain mask per image and one affine per pair serve all methods; each run is a
process of its own with {threads} threads. Seconds are of the registration alone, without affine, reading and
writing, from images in memory to both transforms in memory; SyN's contain a few seconds in which antspyx compresses
its warps. Processor seconds add up all threads. On a machine with other work (see the load) wall seconds are upper
bounds, and processor seconds are the fairer measure. Peak memory is of the whole process. Similarity is the mean
squared local cross-correlation (window 7) in the fixed brain; Dice is the mean over the manual labels. greedy ran as
`-m WNCC 2x2x2 -n 100x100x40 -s 1.5mm 0.5mm`, in double precision (its default), SyN precise with CC radius 4 and
100x70x50x20 iterations.
"""


@dataclass(frozen=True)
class Figure:
    """One target: what was asked for and what was measured.

    Attributes
    ----------
    name, unit : str
        What it is, and in what it is given.
    limit : float
        The target.
    at_least : bool
        Whether the target is a lower limit; else it is an upper one.
    wall, processor : float or None
        The value; None where nothing was measured. A figure without times has no `processor`.
    pairs : int or None
        Number of pairs behind the value; None where no pairs are involved.
    """

    name: str
    unit: str
    limit: float
    at_least: bool
    wall: float | None
    processor: float | None = None
    pairs: int | None = None

    def reached(self, value: float | None) -> str:
        """Whether a value meets the target, in words."""
        if value is None:
            return "not run"
        answer = "yes" if (value >= self.limit if self.at_least else value <= self.limit) else "no"
        return answer if self.pairs is None or self.pairs >= PAIRS_NEEDED else f"{answer} (of {self.pairs} pairs only)"


def figures(runs: dict[str, dict[str, dict[str, Any]]]) -> list[Figure]:
    """Work out every figure of the target table.

    Parameters
    ----------
    runs : dict
        Method, then case, to what was measured; a case that was not run has ``skipped`` or ``failed``.
    """
    found = [
        _ratio(runs, PAPER, "syn precise", 1 / 6),
        _ratio(runs, PAPER, "greedy", 2),
    ]
    for case, run in runs["memory"].items():
        limit = 12 if case == "256x256x256" else 4.5
        peak = run["peak_memory_mb"] * BYTES_PER_MB / BYTES_PER_GB if _done(run) else None
        found.append(Figure(f"peak memory of paper, {case}", "GB", limit, False, peak))
    for case, run in runs["arithmetic"].items():
        wall, processor = run["share"] if _done(run) else (None, None)
        name = f"arithmetic of a level-3 step, {case}, as a share of a bf16 product's"
        found.append(Figure(name, "", 0.6, True, wall, processor))
    dice, similarity = (_pairwise(runs, PAPER, PLAIN, key) for key in ("dice", "similarity"))
    worst = max((abs(a - b) for a, b in dice), default=None)
    name = "Dice, paper against plain float32, largest difference"
    found.append(Figure(name, "", 0.002, False, worst, None, len(dice)))
    worst = max((100 * abs(a - b) / b for a, b in similarity), default=None)
    name = "similarity, paper against plain float32, largest difference"
    found.append(Figure(name, "%", 0.5, False, worst, None, len(similarity)))
    return found


def write_table(data: dict[str, Any], path: Path) -> None:
    """Write the table and, beside it, the same as json.

    Parameters
    ----------
    data : dict
        ``atlas``, ``pairs``, ``threads`` and ``runs`` (see :func:`figures`).
    path : Path
        The Markdown file.
    """
    targets = figures(data["runs"])
    lines = ["# Speed on real pairs", *NOTES.format(**data).splitlines(), "", _conditions(data), ""]
    about = "Ratios are medians over pairs of the ratio within a pair."
    lines += ["## Targets", "", about, "", *_target_table(targets)]
    lines += ["", "## Medians over pairs", "", *_median_table(data), "", "## Runs", "", *_run_table(data)]
    lines += ["", "## Made-up images", "", *_extra_lines(data["runs"])]
    lines += ["", "Where the time of a step goes (`benchmarks/stages.py`):", "", "![stages](../images/stages.png)"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    reached = [
        asdict(f) | {"reached_wall": f.reached(f.wall), "reached_processor": f.reached(f.processor)} for f in targets
    ]
    path.with_suffix(".json").write_text(json.dumps(data | {"targets": reached}, indent=1) + "\n")


def _done(run: dict[str, Any]) -> bool:
    return not {"skipped", "failed"} & set(run)


def _pairwise(runs: dict[str, dict[str, Any]], first: str, second: str, key: str) -> list[tuple[float, float]]:
    """Values of two methods on the pairs that both finished."""
    both = [(runs[first][case], runs[second].get(case, {"skipped": ""})) for case in runs[first]]
    return [(a[key], b[key]) for a, b in both if _done(a) and _done(b)]


def _ratio(runs: dict[str, dict[str, Any]], first: str, second: str, limit: float) -> Figure:
    values = [_pairwise(runs, first, second, key) for key in TIMES]
    wall, processor = (median(a / b for a, b in value) if value else None for value in values)
    return Figure(f"{first} / {second}, seconds", "", limit, False, wall, processor, len(values[0]))


def _why(run: dict[str, Any]) -> str:
    reason = str(run.get("skipped") or f"failed: {run.get('failed')}").rstrip(".")
    return reason if reason.startswith(("not run", "failed")) else f"not run: {reason}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _target_table(targets: list[Figure]) -> list[str]:
    head = ["figure", "target", "measured (wall)", "reached", "by processor seconds", "reached"]
    lines = [_row(head), "|---" * len(head) + "|"]
    for figure in targets:
        bound = "at least" if figure.at_least else "at most"
        values = [_value(v, figure.unit) for v in (figure.wall, figure.processor)]
        verdicts = [figure.reached(v) for v in (figure.wall, figure.processor)]
        if figure.processor is None and figure.wall is not None:
            values[1] = verdicts[1] = ""
        lines.append(
            _row([figure.name, f"{bound} {_value(figure.limit, figure.unit)}",
                  values[0], verdicts[0], values[1], verdicts[1]])
        )  # fmt: skip
    return lines


def _value(value: float | None, unit: str) -> str:
    return "not run" if value is None else f"{value:.3g} {unit}".rstrip()


def _median_table(data: dict[str, Any]) -> list[str]:
    lines = [_row(["method", "pairs", *COLUMNS]), "|---" * (2 + len(COLUMNS)) + "|"]
    for method in _methods(data):
        done = [run for run in data["runs"][method].values() if _done(run)]
        cells = [f"{median(run[key] for run in done):{form}}" if done else "not run" for key, form in COLUMNS.values()]
        lines.append(_row([method, str(len(done)), *cells]))
    return lines


def _run_table(data: dict[str, Any]) -> list[str]:
    lines = [_row(["method", "scan", *COLUMNS, "load before"]), "|---" * (3 + len(COLUMNS)) + "|"]
    for method in _methods(data):
        for case, run in data["runs"][method].items():
            if _done(run):
                cells = [f"{run[key]:{form}}" for key, form in COLUMNS.values()] + [f"{run['load_before']:.1f}"]
            else:
                cells = [_why(run), *[""] * len(COLUMNS)]
            lines.append(_row([method, f"sub-{case}", *cells]))
    return lines


def _methods(data: dict[str, Any]) -> list[str]:
    return [method for method in data["runs"] if method not in ("memory", "arithmetic")]


def _extra_lines(runs: dict[str, dict[str, Any]]) -> list[str]:
    """What was measured on made-up images."""
    lines = []
    for case, run in runs["memory"].items():
        found = _why(run)
        if _done(run):
            found = f"peak {run['peak_memory_mb']:.0f} MB, load before {run['load_before']:.1f}"
        lines.append(f"- A whole process that registers a pair with a network grid of {case}: {found}.")
    for case, run in runs["arithmetic"].items():
        found = _why(run)
        if _done(run):
            found = (
                f"{run['step_flop'] / 1e12:.2f} TFLOP by the shapes of its kernels, in "
                f"{run['step_seconds']:.2f} s ({run['step_processor_seconds']:.2f} processor seconds): "
                f"{run['step_flops'][0] / 1e9:.0f} GFLOP/s; "
                f"a bf16 matrix product reaches {run['matrix_product_flops'][0] / 1e9:.0f}; "
                f"load before {run['load_before']:.1f}. All steps of the paper preset are "
                f"{run['paper_flop'] / 1e12:.0f} TFLOP: {run['paper_flop'] / run['matrix_product_flops'][0]:.0f} s "
                "at the rate of the product, whatever the code"
            )
        lines.append(f"- A step of level 3 at {case}: {found}.")
    return lines


def _conditions(data: dict[str, Any]) -> str:
    """Machine, versions, weights, grids and commit, each value once."""
    runs = [run for cases in data["runs"].values() for run in cases.values() if _done(run)]
    pairs = ", ".join(f"sub-{case}" for case in data["pairs"])
    kept = {
        "Machine": [_listed(run["machine"]) for run in runs],
        "Versions": [_listed(run["versions"]) for run in runs],
        "Weights": [
            f"{run['weights']['name']} (sha256 {run['weights']['sha256'][:12]})" for run in runs if "weights" in run
        ],
        "Commit": [run["commit"] for run in runs if run.get("commit")],
        "Precision of the convolutions": [
            f"{method} {run['precision']}"
            for method, cases in data["runs"].items() for run in cases.values() if "precision" in run
        ],
        "Network grids": ["x".join(map(str, run["network_grid"])) for run in runs if "network_grid" in run],
    }  # fmt: skip
    lines = [f"Atlas: sub-{data['atlas']}; registered to it: {pairs}."]
    lines += [f"{key}: {'; '.join(dict.fromkeys(values))}." for key, values in kept.items() if values]
    return "\n".join(f"- {line}" for line in lines)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
