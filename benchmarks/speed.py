"""Time preset `paper` against SyN and greedy on the same real pairs, and write `docs/results/speed.md`.

    python benchmarks/speed.py DATASET --labels DATASET/derivatives/manual --out RUNS

Brain masks and one affine are made once per pair and shared by all methods. Every run is a process of its own
(`speed_run.py`) and leaves one json, so a killed benchmark goes on where it was, and `--methods` may name a part. A run
is done again when its request differs (names of files, threads) or its folder was deleted, not when code or contents
change: the table names the commits; what could not be run
(a peer that is not installed, a preset that does not exist) is tried again each time and named in the table.
Preset `fast` is timed by `whole_way.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

# Light imports only: Linux counts the memory of the process that starts another one as a peak of that one.
from speed_table import write_table

#: Method to its request. A pair's files, threads and weights are added to it.
METHODS: dict[str, dict[str, Any]] = {
    "nio_m paper": {"task": "engine", "engine": "nio_m", "preset": "paper"},
    "greedy": {"task": "engine", "engine": "greedy", "preset": "default"},
    "nio_m paper float32": {"task": "engine", "engine": "nio_m", "preset": "paper", "precision": "float32"},
    "syn precise": {"task": "engine", "engine": "syn", "preset": "precise"},
}
#: Measurements on made-up images of given sizes.
EXTRAS: dict[str, dict[str, Any]] = {"memory": {"task": "memory"}, "arithmetic": {"task": "arithmetic", "steps": 3}}


def main() -> int:
    """Run what is missing and write the table."""
    options = _parse()
    for case, request in _preparations(options).items():
        if not _run(options, "pairs", case, request):
            raise SystemExit(f"sub-{case}: no masks or no affine, see {_folder(options, 'pairs', case) / 'log.txt'}")
    # Pair by pair, so that the methods that are compared run under much the same load.
    for method, case, request in _requests(options):
        _run(options, method, case, request)
        write_table(_collect(options), options.table)
    write_table(_collect(options), options.table)
    print(f"written: {options.table}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*METHODS, *EXTRAS]
    parser.add_argument("dataset", type=Path, help="BIDS dataset of skull-stripped scans")
    parser.add_argument("--labels", type=Path, required=True, help="derivatives with desc-malf_dseg label maps")
    parser.add_argument("--out", type=Path, required=True, help="takes the runs")
    parser.add_argument("--weights", type=Path, help="network weights of nio_m (default: the package's)")
    parser.add_argument("--pairs", nargs="+", default=["1003", "1107", "1125"], help="participants to register")
    parser.add_argument("--atlas", default="1000", help="participant to register them to")
    parser.add_argument("--methods", nargs="*", default=names, choices=names, metavar="METHOD",
                        help="some of: " + ", ".join(map(repr, names)))  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-grids", nargs="+", type=_grid, default=[(160, 192, 224), (256, 256, 256)])
    parser.add_argument("--arithmetic-grid", type=_grid, default=(160, 160, 200))
    parser.add_argument("--table", type=Path, default=Path(__file__).parents[1] / "docs/results/speed.md")
    return parser.parse_args()


def _grid(text: str) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in text.split("x"))
    if len(sizes) != 3 or any(n <= 0 or n % 8 for n in sizes):
        raise argparse.ArgumentTypeError(f"{text}: expected three multiples of 8 like 160x192x224")
    return sizes


def _preparations(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    return {
        case: {"task": "prepare", "threads": options.threads, "pair": _pair(options, case)} for case in options.pairs
    }


def _requests(options: argparse.Namespace) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, case and request of every run asked for; a case is a participant or a grid."""
    weights = {"weights": str(options.weights.resolve()) if options.weights else None}
    common = {"threads": options.threads}
    wanted = []
    for case in options.pairs:
        for method, request in METHODS.items():
            own = weights if request.get("engine") == "nio_m" else {}
            wanted.append((method, case, {**request, **common, **own, "pair": _pair(options, case)}))
    grids = {"memory": options.memory_grids, "arithmetic": [options.arithmetic_grid]}
    for method, request in EXTRAS.items():
        for grid in grids[method]:
            wanted.append((method, _times(grid), {**request, **common, **weights, "grid": list(grid)}))
    return [entry for entry in wanted if entry[0] in options.methods]


def _times(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))


def _pair(options: argparse.Namespace, case: str) -> dict[str, str]:
    """Files of a pair: of the first session, where a participant has several."""
    made = _folder(options, "pairs", case)
    files = {"fixed_mask": made / "fixed_mask.nii.gz", "moving_mask": made / "moving_mask.nii.gz"}
    for role, participant in (("fixed", options.atlas), ("moving", case)):
        files[role] = first_file(options.dataset / f"sub-{participant}", "*_T1w.nii.gz")
        files[f"{role}_labels"] = first_file(options.labels / f"sub-{participant}", "*_desc-malf_dseg.nii.gz")
    return {key: str(path.resolve()) for key, path in {**files, "affine": made / "affine.h5"}.items()}


def first_file(folder: Path, pattern: str) -> Path:
    """Return the first file of a name in a folder, or end."""
    found = sorted(folder.rglob(pattern))
    if not found:
        raise SystemExit(f"{folder}: found no {pattern}")
    return found[0]


def _folder(options: argparse.Namespace, method: str, case: str) -> Path:
    return Path(options.out, method.replace(" ", "_"), case if "x" in case else f"sub-{case}").resolve()


def _run(options: argparse.Namespace, method: str, case: str, request: dict[str, Any]) -> bool:
    """Run a request unless its result is there; return whether there is a result."""
    folder = _folder(options, method, case)
    if _finished(_read(folder / "run.json"), request):
        return True
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "request.json").write_text(json.dumps(request, indent=1) + "\n")
    print(f"== {method}, {case}", flush=True)
    result = {"request": request, "load_before": os.getloadavg()[0], "commit": commit(), "machine": _machine()}
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("speed_run.py")), str(folder / "request.json"), str(answer)]
    with (folder / "log.txt").open("w") as log:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT).returncode
    if status:
        cause = "was killed by signal" if status < 0 else "ended with status"
        result["failed"] = f"{cause} {abs(status)}" + (" (often: out of memory)" if status == -9 else "")
    else:
        result |= _read(answer)
        answer.unlink()
    temporary = folder / "run.json.new"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(folder / "run.json")
    print("  ", _summary(result), flush=True)
    return _finished(result, request)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _finished(result: dict[str, Any], request: dict[str, Any]) -> bool:
    return result.get("request") == request and not {"skipped", "failed"} & set(result)


def _summary(result: dict[str, Any]) -> str:
    shown = ("skipped", "failed", "dice", "seconds", "processor_seconds", "peak_memory_mb", "share")
    return ", ".join(f"{key} {result[key]}" for key in shown if key in result)


def _collect(options: argparse.Namespace) -> dict[str, Any]:
    """All that there is of the cases asked for, whichever methods were run this time."""
    asked = argparse.Namespace(**{**vars(options), "methods": [*METHODS, *EXTRAS]})
    runs: dict[str, dict[str, Any]] = {method: {} for method in asked.methods}
    for method, case, request in _requests(asked):
        result = _read(_folder(options, method, case) / "run.json")
        if result and result.pop("request") != request:
            result = {"skipped": "not run with these settings"}
        result.pop("record", None)  # long, and not shown
        runs[method][case] = result or {"skipped": "not run"}
    return {"atlas": options.atlas, "pairs": options.pairs, "threads": options.threads, "runs": runs}


def _machine() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
    }


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    entries = {}
    for line in info.read_text().split("\n\n")[0].splitlines():  # the first core's
        key, _, value = line.partition(":")
        entries[key.strip()] = value.strip()
    numbers = ", ".join(f"{key} {entries[key]}" for key in ("cpu family", "model") if key in entries)
    return f"{entries.get('model name', platform.machine())} ({numbers})"


def commit() -> str | None:
    """Return the commit of this code, with -dirty where it was changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    raise SystemExit(main())
