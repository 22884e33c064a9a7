"""Time the whole way of a scan by all methods, stage by stage: `docs/results/whole_way.md`.

    python benchmarks/whole_way.py DATASET --labels DATASET/derivatives/manual --head HEAD --out RUNS

One mask and one affine per scan serve all methods. Each run is a process of its own and leaves one json in RUNS, so a
killed benchmark goes on where it was. A run is done again when its request or processor differs, not when code does:
take another folder then. The page names the commits. Brain extraction is timed on HEAD, since scans of the dataset are
skull-stripped. Scans are of the `train` split. The figure has these seconds, and Dice and std|J| of the test scans as
the pages of the experiments have them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

from speed import commit, cpu_model, first_file

STAGES = ("read", "mask", "affine", "registration", "inverse", "labels", "score", "write")
OTHERS = ("measures", "start")
"""What a run does besides: the measures of its record, and the start of Python and programs and loading of weights."""
ADAPTED = "nio_m:adapted"
"""The method that takes weights of `nio adapt`."""
METHODS: dict[str, dict[str, Any]] = {
    "affine": {"method": "affine"},
    "syn fast": {"method": "syn:fast"},
    "niftyreg": {"method": "niftyreg"},
    "greedy": {"method": "greedy"},
    "lapirn": {"method": "lapirn"},
    "io": {"method": "io"},
    "nio_m paper": {"method": "nio_m"},
    "nio_m fast": {"method": "nio_m:fast"},
    "nio_m fast, float32": {"method": "nio_m:fast", "precision": "float32"},
    "nio_m adapted": {"method": ADAPTED},
    "nio_m adapted, float32": {"method": ADAPTED, "precision": "float32"},
}
ONCE = ("nio_m paper",)
"""Take minutes: timed on the first scan alone."""
SLOW = "syn precise"
"""Takes an hour of processor time a pair: its numbers are those of an earlier page, `first.json`."""
TARGETS = {
    "nio_m fast": 0.25, "nio_m fast, float32": 0.4, "nio_m adapted": 0.25, "nio_m adapted, float32": 0.5,
}  # fmt: skip
"""Largest ratio of the registration's seconds to those of greedy."""
WRITTEN = ("read", "mask", "affine", "registration", "inverse", "write")
"""Stages of the way to the written transforms and image."""
RESULTS = Path(__file__).parents[1] / "docs/results"
PACKAGES = ("nio-pydra", "torch", "numba", "antspyx", "picsl-greedy", "deepbet")
Times = dict[str, list[float]]
"""Wall and processor seconds by stage."""


def main() -> None:
    """Run what is missing, and write the page."""
    options = _parse()
    if options.run:
        _answer(Path(options.run))
        return
    masking = _result(options, "mask", "head", {"head": str(options.head.resolve())})
    runs: dict[str, dict[str, Any]] = {method: {} for method in options.methods}
    for case in options.scans:
        pair = _pair(options, case)
        shared = _result(options, "affine", case, pair)
        for method in options.methods:
            if method in ONCE and case != options.scans[0]:
                continue
            found = _result(
                options, f"by_{method.replace(', ', '_').replace(' ', '_')}", case, pair | _request(options, method)
            )
            found["times"] |= shared["times"] | masking["times"]
            runs[method][case] = found
    write_page(options, runs)
    print(f"written: {options.page}")


def _parse() -> argparse.Namespace:
    if sys.argv[1:2] == ["--run"]:
        return argparse.Namespace(run=sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("dataset", type=Path, help="BIDS dataset of skull-stripped scans")
    parser.add_argument("--labels", type=Path, required=True, help="derivatives with desc-malf_dseg label maps")
    parser.add_argument("--head", type=Path, required=True, help="scan of a whole head, for brain extraction")
    parser.add_argument("--out", type=Path, required=True, help="takes the runs")
    parser.add_argument("--scans", nargs="+", default=["1006", "1013", "1014"], help="participants to register")
    parser.add_argument("--atlas", default="1000", help="participant to register them to")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--adapted", type=Path, help="weights of `nio adapt`; without them their methods are left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", type=Path, default=RESULTS / "whole_way.md")
    options = parser.parse_args()
    if options.adapted is None:
        options.methods = [name for name in options.methods if METHODS[name]["method"] != ADAPTED]
    return argparse.Namespace(run=None, **vars(options))


def _request(options: argparse.Namespace, method: str) -> dict[str, Any]:
    request = dict(METHODS[method])
    if request["method"] == ADAPTED:
        request["method"] += f"@{options.adapted.resolve()}"
    return request


def _pair(options: argparse.Namespace, case: str) -> dict[str, str]:
    """Files of a pair; masks and the affine are made by its first run."""
    made = Path(options.out, "affine", case).resolve()
    files = {"fixed_mask": made / "fixed/mask.nii.gz", "moving_mask": made / "moving/mask.nii.gz"}
    for role, participant in (("fixed", options.atlas), ("moving", case)):
        files[role] = first_file(options.dataset / f"sub-{participant}", "*_T1w.nii.gz")
        files[f"{role}_labels"] = first_file(options.labels / f"sub-{participant}", "*_desc-malf_dseg.nii.gz")
    return {key: str(path.resolve()) for key, path in {**files, "affine": made / "affine.h5"}.items()}


def _result(options: argparse.Namespace, task: str, case: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a run, which is done unless it is there."""
    folder = Path(options.out, task, case).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    request = {**request, "task": task, "threads": options.threads, "cpu": cpu_model()}
    result, answer = folder / "run.json", folder / "answer.json"
    if not result.exists() or json.loads(result.read_text())["request"] != request:
        print(f"== {task}, {case}", flush=True)
        (folder / "request.json").write_text(json.dumps(request))
        load = os.getloadavg()[0]
        watch = Watch(children=True)
        subprocess.run([sys.executable, __file__, "--run", str(folder / "request.json")], check=True)
        found = {"request": request, "load_before": load, "commit": commit(), "process": watch.read()}
        found |= json.loads(answer.read_text())
        answer.unlink()
        result.write_text(json.dumps(found, indent=1) + "\n")
        print("  ", {stage: [round(s, 1) for s in spent] for stage, spent in found["times"].items()}, flush=True)
    return dict(json.loads(result.read_text()))


class Watch:
    """Wall and processor seconds of this process, if asked for with the processes that it waited for."""

    def __init__(self, *, children: bool) -> None:
        self.children, self.started = children, [0.0, 0.0]
        self.started = self.read()

    def read(self) -> list[float]:
        """Return both since the start."""
        used = [resource.getrusage(resource.RUSAGE_SELF)]
        if self.children:
            used.append(resource.getrusage(resource.RUSAGE_CHILDREN))
        now = time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)
        return [value - start for value, start in zip(now, self.started, strict=True)]


@contextmanager
def _timed(times: Times, stage: str) -> Iterator[None]:
    watch = Watch(children=True)
    yield
    times[stage] = [a + b for a, b in zip(times.get(stage, [0.0, 0.0]), watch.read(), strict=True)]


def _answer(path: Path) -> None:
    """Do one run in this process."""
    request = json.loads(path.read_text())
    task = {"mask": _extract_brain, "affine": _align}.get(request["task"], _register)
    (path.parent / "answer.json").write_text(json.dumps(task(request, path.parent)))


def _runtime(request: dict[str, Any]) -> Any:
    from nio_pydra.engines.contract import Runtime

    return Runtime(device="cpu", threads=request["threads"], precision=request.get("precision", "auto"), progress=False)


def _extract_brain(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    from nio_pydra.engines.masks import make_mask

    times: Times = {}
    with _timed(times, "mask"):
        make_mask(Path(request["head"]), folder / "mask.nii.gz", _runtime(request))
    return {"times": times}


def _align(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make both masks and the affine. Its time contains the start of ANTs, and the check."""
    from nio_pydra.engines.affine import align
    from nio_pydra.engines.contract import ScanFiles
    from nio_pydra.engines.masks import prepare

    runtime, times = _runtime(request), {}
    scans = {
        role: prepare(ScanFiles(Path(request[role]), skull_stripped=True), folder / role, runtime, role=role)
        for role in ("fixed", "moving")
    }
    with _timed(times, "affine"):
        record = align(scans["fixed"], scans["moving"], folder / "affine.h5", runtime)
    return {"times": times, "ants": record}


def _register(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    from nio_pydra.engines import registration
    from nio_pydra.engines.contract import ScanFiles
    from nio_pydra.engines.methods import parse_method

    whole, times = Watch(children=True), {}

    def timed(stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            with _timed(times, stage):
                return work(*arguments, **named)

        return wrapped

    own = {"read": ["load_pair"], "inverse": ["invert"], "write": ["write_h5", "save_image"], "measures": ["quality"]}
    for stage, names in own.items():
        for name in names:
            setattr(registration, name, timed(stage, getattr(registration, name)))
    scans = [ScanFiles(Path(request[role]), Path(request[f"{role}_mask"])) for role in ("fixed", "moving")]
    method = parse_method(request["method"])
    files = registration.register(*scans, Path(request["affine"]), folder, method, runtime=_runtime(request))
    record = json.loads(files.record.read_text())
    seconds = record["seconds"]
    spent = [seconds["registration"], seconds["registration_processor"]]
    times["registration"] = [a - b for a, b in zip(spent, times.get("inverse", [0.0, 0.0]), strict=True)]
    times["start"] = [a - sum(t[i] for t in times.values()) for i, a in enumerate(whole.read())]
    fixed_labels, moving_labels = Path(request["fixed_labels"]), Path(request["moving_labels"])
    writing = times["write"]
    with _timed(times, "labels"):
        moved = registration.propagate_labels(
            moving_labels, Path(request["fixed"]), files.forward_xfm, folder / "labels.nii.gz"
        )
        registration.propagate_labels(
            fixed_labels, Path(request["moving"]), files.inverse_xfm, folder / "fixed_labels.nii.gz"
        )
    times["write"] = writing  # that of the label maps counts as labels
    with _timed(times, "score"):
        scored = registration.score(files.record, fixed_labels, moved, files.record, moving_labels)
    kept = ("std_jacobian", "fold_percent", "peak_memory_mb")
    return {
        "times": times,
        "dice": scored["dice"]["mean"],
        "precision": record.get("precision"),
        "versions": {name: version(name) for name in PACKAGES},
        **{key: record[key] for key in kept},
    }


def write_page(options: argparse.Namespace, runs: dict[str, dict[str, Any]]) -> None:
    """Write the page and its figure.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line.
    runs : dict
        By method and scan: ``times`` (wall and processor seconds by stage), ``dice`` and other measures.
    """
    some = [run for cases in runs.values() for run in cases.values()]
    loads = [run["load_before"] for run in some]
    versions = ", ".join(f"{name} {number}" for name, number in some[0]["versions"].items())
    lines = [
        "# The whole way of a scan",
        "",
        f"Written by `benchmarks/whole_way.py` on {time.strftime('%Y-%m-%d')}: {cpu_model()}, {options.threads} "
        f"threads, load before the runs {min(loads):.1f} to {max(loads):.1f}, Python {platform.python_version()}, "
        f"{versions}, commit {', '.join(dict.fromkeys(run['commit'] for run in some))}.",
        "",
        f"Scans {', '.join('sub-' + case for case in options.scans)} (split `train`) to sub-{options.atlas}; medians. "
        + "".join(f"{method}: sub-{options.scans[0]} only. " for method in ONCE if method in runs)
        + "One mask and one affine per scan serve all methods. Processor seconds add up all threads; wall seconds are "
        "upper bounds where the load was above 1. Without bfloat16 stands for processors that do not compute it: here "
        "the same processor computes in float32 (`--precision float32`).",
        "",
        "- mask: brain extraction by deepbet, timed on a whole head, since the scans are skull-stripped;",
        "- affine: with the start of ANTs, on one thread, and the check of its result;",
        "- registration: from images in memory to the field in memory; that of SyN contains its inverse;",
        "- inverse: of the field; labels: both ways, read and written; write: transforms and the warped image;",
        "- measures: similarity, regularity and round trips for the record; start: of Python and programs, weights.",
        "",
    ]
    for index, what in ((1, "Processor seconds"), (0, "Wall seconds")):
        columns = [*STAGES, *OTHERS]
        lines += [
            f"## {what}",
            "",
            f"| method | {' | '.join(columns)} | sum |",
            "|---" + "|---:" * (len(columns) + 1) + "|",
        ]
        for method, cases in runs.items():
            cells = [_seconds(cases, stage, index) for stage in columns]
            lines.append(f"| {_named(method)} | {' | '.join(f'{s:.1f}' for s in [*cells, sum(cells)])} |")
        lines.append("")
    lines += ["## Results", "", "| method | mean Dice | std\\|J\\| | folds % | peak MB |", "|---|---:|---:|---:|---:|"]
    for method, cases in runs.items():
        dice, std, folds, peak = (
            mean(run[key] for run in cases.values())
            for key in ("dice", "std_jacobian", "fold_percent", "peak_memory_mb")
        )
        lines.append(f"| {_named(method)} | {dice:.4f} | {std:.3f} | {folds:.4f} | {peak:.0f} |")
    lines += ["", *_ratios(runs), "", *_draw(options, runs)]
    options.page.write_text("\n".join(lines) + "\n")


def _named(method: str) -> str:
    name, _, preset = method.replace(", float32", "").partition(" ")
    name = name.replace("_", "\\_") + (f" `{preset}`" if preset else "")
    return f"{name}, without bfloat16" if "float32" in method else name


def _seconds(cases: dict[str, Any], stage: str, index: int) -> float:
    return median(run["times"].get(stage, [0.0, 0.0])[index] for run in cases.values())


def _whole(run: dict[str, Any], index: int, stages: tuple[str, ...] = WRITTEN) -> float:
    return sum(run["times"].get(stage, [0.0, 0.0])[index] for stage in stages)


def _ratios(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Ratios to the registration by greedy, as medians of those within each pair."""
    if "greedy" not in runs:
        return []
    head = ["ratio to the registration by greedy alone", "target", "processor seconds", "wall seconds"]
    lines = ["## Ratios", "", f"| {' | '.join(head)} |", "|---|---:|---:|---:|"]
    for method, limit in TARGETS.items():
        if method not in runs:
            continue
        for name, stages, target in (
            ("registration and inverse", ("registration", "inverse"), limit),
            ("the whole way to the written transforms and image", WRITTEN, 1.0),
        ):
            found = [
                median(
                    _whole(run, index, stages) / _whole(runs["greedy"][case], index, ("registration",))
                    for case, run in runs[method].items()
                )
                for index in (1, 0)
            ]
            lines.append(f"| {_named(method)}: {name} | {target:g} | {found[0]:.2f} | {found[1]:.2f} |")
    return lines


def _accuracy() -> dict[str, tuple[float, float]]:
    """Mean Dice and std|J| of the test scans, by method, as the pages of the experiments have them."""
    import pandas as pd

    cases = pd.concat(pd.read_csv(RESULTS / f"{page}_cases.tsv", sep="\t") for page in ("experiment_1", "adapt"))
    cases = cases[cases["status"] == "done"].drop_duplicates(["method", "case"])
    means = cases.groupby("method")[["dice_all", "std_jacobian"]].mean()
    return {str(name): (dice, std) for name, dice, std in means.itertuples()}


def _draw(options: argparse.Namespace, runs: dict[str, dict[str, Any]]) -> list[str]:
    """Draw Dice over seconds and over std|J|, and return the lines that show the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    accuracy, points = _accuracy(), {}
    for method, cases in runs.items():
        text = METHODS[method]["method"]
        text += f"@{options.adapted.name}" if text == ADAPTED else ""
        if text in accuracy:
            points[method] = (median(_whole(run, 1) for run in cases.values()), *accuracy[text])
    slow = list(json.loads((RESULTS / "first.json").read_text())["SyN precise"].values())
    shared = tuple(stage for stage in WRITTEN if stage not in ("registration", "inverse"))
    others = median(_whole(run, 1, shared) for run in next(iter(runs.values())).values())
    dice, std, seconds = (mean(run[key] for run in slow) for key in ("Dice", "std of Jacobian", "processor seconds"))
    points[SLOW] = (others + seconds, dice, std)

    affine = points.pop("affine", None)
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
    for number, (method, (spent, dice, std)) in enumerate(points.items()):
        style: dict[str, Any] = {"marker": "osD^v"[number // 8], "color": f"C{number % 8}", "s": 46}
        if method == SLOW or "float32" in method:
            style["facecolors"] = "none"
        panels[0].scatter(spent, dice, label=method.replace("float32", "without bfloat16"), **style)
        panels[1].scatter(std, dice, **style)
    panels[0].set(xscale="log", xlabel="processor seconds of the whole way", ylabel="mean Dice of the test scans")
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].xaxis.set_major_formatter("{x:g}")
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    panels[1].set(xlabel="std|J|, standard deviation of the Jacobian determinant")
    for axes in panels:
        axes.grid(alpha=0.3)
    if affine is not None:
        place = {"xy": (0.97, 0.03), "xycoords": "axes fraction", "ha": "right", "fontsize": 8}
        panels[0].annotate(f"not shown: affine alone, {affine[1]:.3f} after {affine[0]:.0f} s", **place)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    picture = RESULTS.parent / "images/whole_way.png"
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)
    return [
        "## Dice over seconds and over regularity",
        "",
        f"![Dice over processor seconds and over regularity](../images/{picture.name})",
        "",
        "Seconds are the medians of this page, to the written transforms and image. Dice and std|J| are means over the "
        "eight test scans, from [experiment 1](experiment_1.md) and [the adaptation](adapt.md); without bfloat16, Dice "
        f"is that with it. Hollow as well: `{SLOW}`, with three of the test scans only and the seconds that its "
        "registration took on another processor ([first results](first.md)).",
    ]


if __name__ == "__main__":
    main()
