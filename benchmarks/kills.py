"""Kill runs of `nio-pydra` at random, start them again, and see whether anything was lost.

    python benchmarks/kills.py --kills 100 --seed 0 --table docs/results/kills.md

Each time, eight small scans are registered by the affine engine with --nprocs 2, in folders of their own. At a random
moment a random signal (SIGTERM, SIGINT or SIGKILL) goes to the run or to one of the processes below it; every tenth
time three runs with the same output and work folder were started at once, and one of them is hit. Then the same
command is run again. Afterwards every result must be there and hold the bytes of a run that nobody disturbed (of
records: all but times and memory), nothing may be half-written, no process may be left and no temporary folder.

What was done is kept beside the table's name with the ending .jsonl, so that an interrupted benchmark goes on where it
was. It reads processes from /proc: Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from speed import cpu_model

from nio_pydra import __version__
from nio_pydra.system.files import atomic_path

SCANS = 8
SHAPE = (24, 28, 24)
VOXEL_MM = 6.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
AT_ONCE = 3
EVERY = 10
"""So often several runs are started at once."""
PARENT = "nio-pydra"
MARK = "NIO_KILLS"
"""Environment variable by which the processes of a run are known, orphans too."""
GRACE_SECONDS = 2.0
"""After which no process of a killed run may live."""
LONGEST_SECONDS = 600.0
APP = "import sys; from nio_pydra.cli.bids_app import main; sys.exit(main(sys.argv[1:]))"
FAULTS = {
    "lost": "results lost",
    "different": "results different",
    "half_written": "half-written files",
    "processes": "processes left",
    "folders": "temporary folders left",
    "failed": "runs that failed beside a killed one, or afterwards",
}


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="(default: %(default)s)")
    parser.add_argument("--table", type=Path, default=Path("kills.md"), metavar="PATH", help="(default: %(default)s)")
    options = parser.parse_args()
    kept = options.table.with_suffix(".jsonl")
    lines = kept.read_text().splitlines() if kept.exists() else []
    done = {entry["kill"]: entry for entry in map(json.loads, lines) if entry["seed"] == options.seed}
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        make_dataset(folder / "data")
        begin = time.monotonic()
        if run(folder / "undisturbed", folder / "data", "undisturbed").wait():
            sys.exit((folder / "undisturbed/undisturbed.log").read_text())
        seconds = time.monotonic() - begin
        expected = contents(folder / "undisturbed/out")
        for number in range(options.kills):
            if number not in done:
                done[number] = kill(number, options.seed, folder, expected, seconds)
                with kept.open("a") as stream:
                    stream.write(json.dumps(done[number]) + "\n")
            print(sentence(done[number]), flush=True)
    with atomic_path(options.table) as temporary:
        temporary.write_text(table([done[number] for number in range(options.kills)], options.seed))


def kill(number: int, seed: int, parent: Path, expected: dict[str, str], seconds: float) -> dict[str, Any]:
    """Disturb one run, or one of several, start it again, and say what was wrong afterwards."""
    rng = np.random.default_rng([seed, number])
    sent = SIGNALS[rng.integers(len(SIGNALS))]
    target = ("parent", "child")[rng.integers(2)]
    moment = rng.uniform(0.05, 0.95) * seconds
    runs = AT_ONCE if number % EVERY == EVERY - 1 else 1
    folder = parent / f"kill{number}"
    marks = [f"{seed}-{number}-{each}-" for each in range(runs)]
    while True:
        begun = [run(folder, parent / "data", mark) for mark in marks]
        time.sleep(moment * (1 + 0.5 * (runs - 1)))
        if begun[0].poll() is None:
            break
        moment /= 2  # it was faster than the undisturbed one: too late to disturb it
        for process in begun:
            process.wait(LONGEST_SECONDS)
        shutil.rmtree(folder)
    hit = strike(begun[0], marks[0], sent, target, rng)
    target = "parent" if hit.startswith(PARENT) else "child"  # there may have been no child yet
    ends = [process.wait(LONGEST_SECONDS) for process in begun]
    time.sleep(GRACE_SECONDS)
    left = [name for name, _ in alive(marks)]
    again = run(folder, parent / "data", mark := f"{seed}-{number}-again-").wait(LONGEST_SECONDS)
    time.sleep(GRACE_SECONDS)
    left += [name for name, _ in alive([*marks, mark])]
    found = contents(folder / "out")
    entry = {
        "seed": seed, "kill": number, "signal": sent.name, "target": target, "at_once": runs,
        "moment": round(moment, 2), "hit": hit, "status": ends[0],
        "lost": sorted(set(expected) - set(found)),
        "different": sorted(name for name, content in found.items() if content != expected.get(name)),
        "half_written": [path.name for path in folder.rglob("*") if path.name.startswith((".tmp", ".nio-pydra"))],
        "processes": left,
        "folders": [path.name for path in (folder / "tmp").iterdir()],
        "failed": sum(end != 0 for end in [*ends[1:], again]),
    }  # fmt: skip
    if not faults(entry):
        shutil.rmtree(folder)
    return entry


def strike(process: subprocess.Popen[bytes], mark: str, sent: int, target: str, rng: np.random.Generator) -> str:
    """Send the signal; return what was hit."""
    below = [(name, pid) for name, pid in alive([mark]) if pid != process.pid]
    if target == "child" and below:
        name, pid = below[rng.integers(len(below))]
    else:
        name, pid = PARENT, process.pid
    try:
        os.kill(pid, sent)
    except ProcessLookupError:
        return f"{name}, which had just ended,"
    return name


def alive(marks: Sequence[str]) -> list[tuple[str, int]]:
    """What the processes with one of these marks are, and their numbers."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            marked = any(f"{MARK}={mark}".encode() in (entry / "environ").read_bytes() for mark in marks)
            words = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if marked and words:
            kinds = {"supervisor.py": "supervisor", "ants_process": "ANTs", "resource_tracker": "resource tracker",
                     "forkserver": "fork server or worker"}  # fmt: skip
            kind = next((kind for word, kind in kinds.items() if word in words), "other")
            found.append((kind, int(entry.name)))
    return sorted(found, key=lambda each: each[1])


def run(folder: Path, data: Path, mark: str) -> subprocess.Popen[bytes]:
    """Start the app in a folder, which takes the results, the work folder and all temporary files."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    arguments = [str(data / "raw"), "out", "participant", "-w", "work", "--atlas", str(data / "atlas.nii.gz")]
    arguments += ["--atlas-name", "Tiny", "--skull-stripped", "--engine", "affine", "--device", "cpu"]
    arguments += ["--nprocs", "2", "--omp-nthreads", "1"]
    with (folder / f"{mark}.log").open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-c", APP, *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=stream,
            stderr=subprocess.STDOUT, env={**os.environ, MARK: mark, "TMPDIR": str(folder / "tmp")},
            # A shell makes what it runs in the background ignore interrupts, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            start_new_session=True,
        )  # fmt: skip


def contents(out: Path) -> dict[str, str]:
    """Digest of every result by its name; of a record without what a clock or a scale says."""
    found = {}
    for path in sorted(out.glob("**/*")):
        name = str(path.relative_to(out))
        if path.is_dir() or name.startswith("logs"):
            continue
        content = path.read_bytes()
        if name.endswith("_record.json"):
            with suppress(ValueError):  # half-written: a difference
                record = json.loads(content)
                kept = {key: value for key, value in record.items() if key not in ("seconds", "peak_memory_mb")}
                content = json.dumps(kept).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def make_dataset(folder: Path) -> None:
    """Eight skull-stripped scans of three tissues, each shifted in its own way, and an atlas."""
    affine = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])
    affine[:3, 3] = -VOXEL_MM / 2 * (np.array(SHAPE) - 1)
    for number in range(SCANS + 1):
        path = folder / "atlas.nii.gz"
        if number:
            path = folder / f"raw/sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(brain(number), affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        nib.save(image, path)
    description = {"Name": "tiny", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (folder / "raw/dataset_description.json").write_text(json.dumps(description))


def brain(number: int) -> NDArray[np.float32]:
    """Shells of three intensities with noise, shifted by as many mm as its number."""
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * VOXEL_MM for n in SHAPE], indexing="ij")
    radius = np.sqrt((x / 60) ** 2 + ((y - number) / 75) ** 2 + (z / 60) ** 2)
    labels = (radius < 1).astype(int) + (radius < 0.7) + (radius < 0.35)
    noise = np.random.default_rng(number).normal(0, 3, SHAPE)
    return (np.array([0, 80, 140, 40])[labels] + (labels > 0) * noise).astype(np.float32)


def faults(entry: dict[str, Any]) -> str:
    """What was wrong, in words; nothing where nothing was."""
    return "; ".join(f"{words}: {entry[key]}" for key, words in FAULTS.items() if entry[key])


def sentence(entry: dict[str, Any]) -> str:
    """One line about one kill."""
    beside = f", {entry['at_once']} runs at once" if entry["at_once"] > 1 else ""
    begin = f"{entry['kill']:3d} {entry['signal']} to {entry['hit']} after {entry['moment']} s{beside}, "
    return f"{begin}status {entry['status']}: {faults(entry) or 'nothing lost'}"


def table(entries: Sequence[dict[str, Any]], seed: int) -> str:
    """Format all kills by signal and target."""

    def amount(value: Any) -> int:
        return value if isinstance(value, int) else len(value)

    lines = [
        "# Killed runs",
        "",
        f"{len(entries)} runs of {SCANS} small scans (affine engine, `--nprocs 2`), each hit by a signal at a random "
        f"moment and then started again; every tenth time {AT_ONCE} runs at once with one output and work folder. "
        "A child is any process below the run: a worker, ANTs, its supervisor.",
        "",
        f"{time.strftime('%Y-%m-%d')}, {cpu_model()}, nio_pydra {__version__}, Python "
        f"{platform.python_version()}, `benchmarks/kills.py --kills {len(entries)} --seed {seed}`.",
        "",
        "| signal | to | kills | " + " | ".join(FAULTS.values()) + " |",
        "|---|---|" + "---:|" * (1 + len(FAULTS)),
    ]
    rows = [(sent.name, target, runs) for runs in (1, AT_ONCE) for sent in SIGNALS for target in ("parent", "child")]
    for name, target, runs in rows:
        of_row = [e for e in entries if (e["signal"], e["target"], e["at_once"]) == (name, target, runs)]
        if of_row:
            sums = [sum(amount(entry[key]) for entry in of_row) for key in FAULTS]
            to = target if runs == 1 else f"{target}, {runs} runs at once"
            lines.append(f"| {name} | {to} | {len(of_row)} | " + " | ".join(map(str, sums)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
