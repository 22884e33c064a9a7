"""Time the whole way of a scan, stage by stage, beside greedy and SyN: `docs/results/whole_way.md`.

    python benchmarks/whole_way.py DATASET --labels DATASET/derivatives/manual --head HEAD --out RUNS

One mask and one affine per scan serve all methods. Each run is a process of its own and leaves one json in RUNS, so a
killed benchmark goes on where it was. A run is done again when its request or processor differs, not when code does:
take another folder then. The page names the commits. Brain extraction is timed on HEAD, since scans of the dataset are
skull-stripped. Nothing but the page depends on labels; still, scans are of the `train` split.
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
FORMER: dict[str, Any] = {
    "network": {"iterations": [20, 10, 0], "learning_rate": 1e-4, "compared": "full"},
    "field": {"iterations": 30, "coarse_iterations": [0, 0]},
}
"""Preset `fast` before 2026-11-26, by which older pages were made."""
METHODS: dict[str, dict[str, Any]] = {
    "nio_m fast": {"engine": "nio_m", "preset": "fast"},
    "nio_m fast, float32": {"engine": "nio_m", "preset": "fast", "precision": "float32"},
    "nio_m fast, former": {"engine": "nio_m", "preset": "fast", "changes": FORMER},
    "greedy": {"engine": "greedy", "preset": "default"},
    "syn fast": {"engine": "syn", "preset": "fast"},
}
TARGETS = {"nio_m fast": 0.25, "nio_m fast, float32": 0.4}
"""Largest ratio of the registration's seconds to those of greedy."""
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
            found = _result(options, method.replace(", ", "_").replace(" ", "_"), case, pair | METHODS[method])
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs/results/whole_way.md")
    return argparse.Namespace(run=None, **vars(parser.parse_args()))


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
    from nio_pydra.engines.methods import choose_method

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
    method = choose_method(request["engine"], request["preset"], changes=request.get("changes"))
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
    picture = options.page.parents[1] / "images/whole_way.png"
    lines = [
        "# The whole way of a scan",
        "",
        f"Written by `benchmarks/whole_way.py` on {time.strftime('%Y-%m-%d')}: {cpu_model()}, {options.threads} "
        f"threads, load before the runs {min(loads):.1f} to {max(loads):.1f}, Python {platform.python_version()}, "
        f"{versions}, commit {', '.join(dict.fromkeys(run['commit'] for run in some))}.",
        "",
        f"Scans {', '.join('sub-' + case for case in options.scans)} (split `train`) to sub-{options.atlas}; medians. "
        "One mask and one affine per scan serve all methods. Processor seconds add up all threads; wall seconds are "
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
    lines += ["", *_ratios(runs), "", f"![Dice over seconds](../images/{picture.name})"]
    options.page.write_text("\n".join(lines) + "\n")
    _draw(runs, picture)


def _named(method: str) -> str:
    words = {
        "nio_m fast": "nio_m `fast`",
        "nio_m fast, float32": "nio_m `fast`, without bfloat16",
        "nio_m fast, former": "nio_m `fast` before 2026-11-26",
    }
    return words.get(method, method)


def _seconds(cases: dict[str, Any], stage: str, index: int) -> float:
    return median(run["times"].get(stage, [0.0, 0.0])[index] for run in cases.values())


def _whole(run: dict[str, Any], index: int, stages: tuple[str, ...] = STAGES) -> float:
    return sum(run["times"].get(stage, [0.0, 0.0])[index] for stage in stages)


def _ratios(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Ratios to the registration by greedy, as medians of those within each pair."""
    if "greedy" not in runs:
        return []
    head = ["ratio to the registration by greedy alone", "target", "processor seconds", "wall seconds"]
    lines = ["## Ratios", "", f"| {' | '.join(head)} |", "|---|---:|---:|---:|"]
    way = tuple(stage for stage in STAGES if stage not in ("labels", "score"))
    for method, limit in TARGETS.items():
        if method not in runs:
            continue
        for name, stages, target in (
            ("registration and inverse", ("registration", "inverse"), limit),
            ("the whole way to the written transforms and image", way, 1.0),
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


def _draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    colours = ("#0072B2", "#56B4E9", "#999999", "#E69F00", "#009E73")  # Okabe and Ito's
    for axes, index, name in zip(panels, (1, 0), ("processor seconds", "wall seconds"), strict=True):
        for colour, (method, cases) in zip(colours, runs.items(), strict=False):
            seconds = [_whole(run, index) for run in cases.values()]
            axes.scatter(seconds, [run["dice"] for run in cases.values()], color=colour, label=method, s=30)
        axes.set(xlim=(0, None), xlabel=f"{name} of the whole way")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean Dice")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs), fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
