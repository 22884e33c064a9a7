"""Register a few real scans to one of them by every method, and write the table `docs/results/first.md`.

    python benchmarks/first_results.py DATASET --labels DATASET/derivatives/manual --out RUNS \
        --authors LapIRN_disp_fea7.pth

Each participant is one call of `nio-pydra` per method, of the first session where there are several, with the same
masks, affine (cached, so computed once) and threads. Runs that are there already are kept: a killed benchmark goes on,
and `--methods` may name a part. Where no run is found, what the table's data hold of the same weights stays.
`--speed-runs` takes over what `speed.py` ran on the same pairs, so that an hour of SyN need not be spent twice. What
never ran, or failed, is listed as such in the table.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from app_runs import Bench, Row, Scans, stored_runs, write_table

from nio_pydra.metrics import mean_of_lowest
from nio_pydra.networks.checkpoints import default_weights

#: Method to engine, preset and which weights it takes.
METHODS = {
    "affine": ("affine", None, None),
    "LapIRN, default": ("lapirn", "paper", "own"),
    "NIO_m, default": ("nio_m", "paper", "own"),
    "NIO_m fast, default": ("nio_m", "fast", "own"),
    "LapIRN, authors' disp_fea7": ("lapirn", "paper", "authors"),
    "NIO_m, authors' disp_fea7": ("nio_m", "paper", "authors"),
    "NIO_m fast, authors' disp_fea7": ("nio_m", "fast", "authors"),
    "SyN fast": ("syn", "fast", None),
    "SyN precise": ("syn", "precise", None),
}
#: Column to its number of digits.
COLUMNS = {"Dice": 3, "Dice, lowest 30 % of labels": 3, "std of Jacobian": 3, "folds %": 3,
           "folds before unfolding %": 3, "seconds": 0, "processor seconds": 0, "peak MB": 0}  # fmt: skip


def main() -> int:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--labels", type=Path, required=True, help="derivatives with desc-malf_dseg label maps")
    parser.add_argument("--authors", type=Path, required=True, help="the authors' LapIRN_disp_fea7.pth")
    parser.add_argument("--out", type=Path, required=True, help="takes the runs")
    parser.add_argument("--speed-runs", type=Path, help="runs of speed.py with the same data, atlas and threads")
    parser.add_argument("--atlas", default="1000", help="participant that serves as the atlas")
    parser.add_argument("--participants", nargs="+", default=["1003", "1107", "1125"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=Path, default=Path(__file__).parents[1] / "docs/results/first.md")
    options = parser.parse_args()
    files = {None: None, "own": default_weights(), "authors": options.authors}
    rows = {name: Row(name, engine, preset, files[weights]) for name, (engine, preset, weights) in METHODS.items()}
    scans = Scans(options.dataset, options.labels, "malf", options.atlas, tuple(options.participants))
    bench = Bench(options.out, options.out / "work", options.threads, options.speed_runs)
    done = [bench.run(rows[method], scans) for method in options.methods]
    _write(options, bench, scans, rows.values())
    return 0 if all(done) else 1


def _figures(record: dict[str, Any]) -> dict[str, float | None]:
    """What `COLUMNS` shows of one scan."""
    labels = list(record["dice"]["labels"].values())
    values = (
        record["dice"]["mean"],
        mean_of_lowest(labels),
        record["std_jacobian"],
        record["fold_percent"],
        (record.get("before_unfolding") or {}).get("fold_percent"),
        record["seconds"]["registration"],
        record["seconds"]["registration_processor"],
        record["peak_memory_mb"],
    )
    return dict(zip(COLUMNS, values, strict=True))


def _write(options: argparse.Namespace, bench: Bench, scans: Scans, rows: Iterable[Row]) -> None:
    lines = [
        "# First results on real scans",
        "",
        f"Written by `benchmarks/first_results.py`. Atlas: sub-{options.atlas}; registered to it: "
        f"{', '.join('sub-' + p for p in options.participants)}. Dice is the mean over the manual labels that both "
        "scans have; one affine for all methods. NIO_m is preset `paper` unless its name says another. Seconds are of "
        "the registration alone, without affine, reading and writing. Other work of the machine at that time makes "
        "wall seconds longer; processor seconds add up all threads.",
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, {options.threads} threads per run.",
        "",
        "| method | scan | " + " | ".join(COLUMNS) + " |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    runs = stored_runs(options.table)
    for row in rows:
        bench.update(runs, row, scans, _figures)
    for method in METHODS:
        found = {p: runs[method][p] for p in options.participants if p in runs[method]}
        figures = {f"sub-{p}": [run.get(column) for column in COLUMNS] for p, run in found.items()}
        if len(figures) == len(options.participants):  # means over other scans could not be compared
            columns = zip(*figures.values(), strict=True)
            figures["mean"] = [None if None in column else float(np.mean(column)) for column in columns]
        for scan, values in figures.items():
            shown = ["-" if v is None else f"{v:.{n}f}" for v, n in zip(values, COLUMNS.values(), strict=True)]
            lines.append(f"| {method} | {scan} | " + " | ".join(shown) + " |")
        if missing := [p for p in options.participants if p not in found]:
            absent = ", ".join(f"sub-{p}" for p in missing)
            lines.append(f"| {method} | {absent} |" + " not run |" * len(COLUMNS))
    write_table(options.table, lines, runs)


if __name__ == "__main__":
    raise SystemExit(main())
