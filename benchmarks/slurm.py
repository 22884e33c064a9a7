"""Try `nio-pydra --worker slurm` on a real SLURM of one node: what works, what it says when something goes wrong.

    python benchmarks/slurm.py --table docs/results/slurm.md

Small simulated scans (3 mm; eight, then three) are registered by the affine engine, one SLURM job each, while jobs and
the run are disturbed. `slurm_cluster.py` beside this file says what must be installed; both end only the processes that
they started. Commands of SLURM are counted by scripts of the same names that come first on PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from slurm_cluster import cluster, end_once

import nio_pydra
from nio_pydra import __version__
from nio_pydra.simulation.subject import Appearance, mni152, random_map, scan
from nio_pydra.spatial.images import save_image
from nio_pydra.system.files import atomic_path

SCANS = 8
FEW = 3
"""Scans of the trials after the first."""
SPACING = 3  # mm
APP = "import sys; from nio_pydra.cli.bids_app import main; sys.exit(main(sys.argv[1:]))"
COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")
LONGEST_SECONDS = 900.0
WATCHED = "Memory is watched by SLURM's own accounting of processes, not by control groups. "


@dataclass
class Run:
    """A run of the app.

    Attributes
    ----------
    status : int
    done : int
        Scans with results.
    said : list of str
        Lines about failed scans, and the last line of an ended run.
    seconds : float
    calls : Counter
        How often each command of SLURM was called.
    log : str
    """

    status: int
    done: int
    said: list[str]
    seconds: float
    calls: Counter[str]
    log: str


@dataclass
class Trial:
    """Where runs happen.

    Attributes
    ----------
    folder : Path
        Data, and a folder for each trial.
    environment : dict of str to str
        Environment that leads to the cluster.
    rows : list
        Name of the trial, run, and what was seen beyond it.
    started : list
        Processes of the app.
    """

    folder: Path
    environment: dict[str, str]
    rows: list[tuple[str, Run, str]] = field(default_factory=list)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, *more: str, scans: int = FEW) -> subprocess.Popen[bytes]:
        """Start the app in folders of the given name."""
        here = self.folder / name
        here.mkdir(exist_ok=True)
        data = self.folder / "data"
        labels = [f"{number:02d}" for number in range(1, scans + 1)]
        arguments = [
            data / "bids", here / "out", "participant", "-w", here / "work", "--atlas", data / "atlas.nii.gz",
            "--atlas-name", "Small", "--skull-stripped", "--worker", "slurm", "--engine", "affine",
            "--participant-label", *labels, *more,
        ]  # fmt: skip
        environment = self.environment | {"COUNTED": str(here / "calls")}
        (here / "calls").write_text("")
        with (here / "log").open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", APP, *map(str, arguments)], env=environment, stdout=stream,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def end(self, name: str, process: subprocess.Popen[bytes], began: float) -> Run:
        """Wait for a run, and say what became of it."""
        status = process.wait(LONGEST_SECONDS)
        here = self.folder / name
        log = (here / "log").read_text()
        lines = [line.strip() for line in log.splitlines()]
        said = [re.sub(r"^[\d:]+ +", "", line) for line in lines if re.match(r"[\d:]+   sub-", line)]
        said += [line for line in lines if line.startswith("nio-pydra: ")]
        done = len(list((here / "out").glob("sub-*/anat/*record.json")))
        calls = Counter((here / "calls").read_text().split())
        return Run(status, done, said, time.monotonic() - began, calls, log)

    def run(self, name: str, *more: str, scans: int = FEW) -> Run:
        """Run the app to its end."""
        began = time.monotonic()
        return self.end(name, self.start(name, *more, scans=scans), began)

    def add(self, what: str, run: Run, seen: str = "") -> None:
        """Note a row of the table, and show it."""
        self.rows.append((what, run, seen))
        print(f"== {what}: status {run.status}, {run.done} done, {run.seconds:.0f} s, {dict(run.calls)} {seen}")
        for line in run.said:
            print(f"   {line}")
        sys.stdout.flush()

    def slurm(self, *command: str) -> str:
        """Return what a command of SLURM prints."""
        own = {name: value for name, value in self.environment.items() if name != "COUNTED"}
        return subprocess.run(command, env=own, capture_output=True, text=True).stdout

    def jobs(self, *states: str) -> list[str]:
        """Return the tasks in given states; all that are not ended without one."""
        chosen = [f"--states={','.join(states)}"] if states else []
        return self.slurm("squeue", "--noheader", "--array", "--format=%i", *chosen).split()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition."""
        limit = time.monotonic() + LONGEST_SECONDS
        while not condition():
            if time.monotonic() > limit:
                sys.exit("what was waited for did not happen")
            time.sleep(0.3)


def main() -> None:
    """Run all trials, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--table", type=Path, default=Path("slurm.md"), metavar="PATH", help="(default: %(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, end_once)
    rows = []
    with tempfile.TemporaryDirectory(prefix="slurm-trials-") as name:
        folder = Path(name)
        make_dataset(folder / "data")
        for accounting, trials in ((True, WITH), (False, WITHOUT)):
            with cluster(accounting=accounting) as environment:
                environment["PATH"] = f"{counting(folder)}:{environment['PATH']}"
                trial = Trial(folder, environment)
                version = trial.slurm("sinfo", "--version").strip()
                try:
                    for each in trials:
                        each(trial)
                finally:
                    for process in trial.started:
                        process.kill()
                rows += trial.rows
    with atomic_path(options.table) as temporary:
        temporary.write_text(table(rows, version))


def normal_and_again(trial: Trial) -> None:
    """Run to the end, then start the same command again."""
    process, began = trial.start("normal", "--omp-nthreads", "1", scans=SCANS), time.monotonic()
    trial.until(lambda: bool(trial.jobs("RUNNING")))
    shown = trial.slurm("scontrol", "show", "job", trial.jobs("RUNNING")[0])
    asked = re.search(r"NumCPUs=(\d+)", shown), re.search(r"TimeLimit=(\S+)", shown), re.search(r"Requeue=(\d)", shown)
    memory = re.search(r"MinMemoryNode=(\S+)", shown)
    run = trial.end("normal", process, began)
    threads = {
        json.loads(path.read_text())["threads"]
        for path in (trial.folder / "normal/out").glob("sub-*/anat/*record.json")
    }
    cpus, limit, requeue = (found[1] if found else "?" for found in asked)
    trial.add(
        "normal run", run,
        f"each job: {cpus} CPU, {memory[1] if memory else '?'} memory, limit {limit}, requeue {requeue}; "
        f"threads in the records: {', '.join(map(str, sorted(threads)))}",
    )  # fmt: skip
    trial.add("the same command again", trial.run("normal", "--omp-nthreads", "1", scans=SCANS))


def cancelled(trial: Trial) -> None:
    """Cancel one job."""
    process, began = trial.start("cancelled"), time.monotonic()
    trial.until(lambda: bool(trial.jobs("RUNNING")))
    trial.slurm("scancel", trial.jobs("RUNNING")[0])
    trial.add("`scancel` of one job", trial.end("cancelled", process, began))
    trial.add("the same command again", trial.run("cancelled"))


def killed(trial: Trial) -> None:
    """Kill the process of one job."""
    process, began = trial.start("killed"), time.monotonic()
    holders = trial.folder / "killed/work/nio_pydra/slurm"
    trial.until(lambda: bool(list(holders.glob("*/*/*.holder"))))
    number, _ = json.loads(next(iter(holders.glob("*/*/*.holder"))).read_text())
    os.kill(number, signal.SIGKILL)
    trial.add("process of one job killed (SIGKILL)", trial.end("killed", process, began))
    trial.add("the same command again", trial.run("killed"))


def memory(trial: Trial) -> None:
    """Give too little memory."""
    trial.add("memory limit of 150 MiB", trial.run("memory", "--slurm-args=--mem=150M", scans=2))
    trial.add("the same with enough", trial.run("memory", scans=2))


def time_limit(trial: Trial) -> None:
    """Give too little time: the registration takes some minutes."""
    more = ("--engine", "nio_m", "--preset", "paper", "--omp-nthreads", "1")
    run = trial.run("time", *more, "--slurm-args=--time=1", scans=1)
    trial.add("time limit of 1 min, NIO_m `paper`", run)
    trial.add("the same folder, affine alone", trial.run("time", scans=1))


def interrupted(trial: Trial) -> None:
    """Interrupt the run, as Ctrl-C does."""
    process, began = trial.start("interrupted"), time.monotonic()
    trial.until(lambda: bool(trial.jobs("RUNNING")))
    before = len(trial.jobs())
    process.send_signal(signal.SIGINT)
    run = trial.end("interrupted", process, began)
    trial.until(lambda: not trial.jobs("PENDING", "RUNNING"))
    trial.add("Ctrl-C", run, f"jobs in the queue: {before} before, {len(trial.jobs('PENDING', 'RUNNING'))} after")
    trial.add("the same command again", trial.run("interrupted"))


def killed_run(trial: Trial) -> None:
    """Kill the run itself; its jobs go on, and the next run waits for them."""
    process, began = trial.start("orphans"), time.monotonic()
    trial.until(lambda: bool(trial.jobs("RUNNING")))
    process.kill()
    run = trial.end("orphans", process, began)
    trial.add("run killed (SIGKILL)", run, f"its jobs go on: {len(trial.jobs())}")
    again = trial.run("orphans")
    taken = re.search(r"(\d+) scan\(s\) have jobs", again.log)
    trial.add("the same command again", again, f"jobs taken over: {taken[1] if taken else 0}")


def other_node(trial: Trial) -> None:
    """Kill a run and its jobs, as if on another node: their locks name a host that nobody can ask."""
    process, began = trial.start("other_node"), time.monotonic()
    work = trial.folder / "other_node/work/nio_pydra"
    trial.until(lambda: bool(list(work.glob("slurm/*/*/*.holder"))) and bool(list(work.glob("pydra/*.lock"))))
    process.kill()
    holders = [json.loads(path.read_text()) for path in work.glob("slurm/*/*/*.holder")]
    trial.slurm("scancel", "--signal=KILL", "--name=nio-pydra")
    trial.slurm("scancel", "--name=nio-pydra")
    trial.until(lambda: not trial.jobs())
    left = [*work.glob("pydra/*.lock")]
    for lock in left:
        pid, host, *rest = lock.read_text().splitlines() or ["1", ""]
        lock.write_text("\n".join([pid, f"another-{host}", *rest]) + "\n")
    assert holders
    trial.end("other_node", process, began)
    run = trial.run("other_node")
    trial.add("run after all was killed on another node", run, f"locks that were left: {len(left)}")


def edited(trial: Trial) -> None:
    """Edit the checkout between the submission and the start of a job."""
    code = trial.folder / "checkout"
    shutil.copytree(Path(nio_pydra.__file__).parent, code / "nio_pydra")
    before = trial.environment.get("PYTHONPATH")
    trial.environment["PYTHONPATH"] = str(code)
    process, began = trial.start("edited", "--slurm-args=--hold", scans=1), time.monotonic()
    trial.until(lambda: bool(trial.jobs("PENDING")))
    with (code / "nio_pydra/errors.py").open("a") as stream:
        stream.write("# edited\n")
    for job in trial.jobs("PENDING"):
        trial.slurm("scontrol", "release", job)
    trial.add("checkout edited before the job started", trial.end("edited", process, began))
    trial.add("the same command again", trial.run("edited", scans=1))
    trial.environment.pop("PYTHONPATH")
    trial.environment |= {} if before is None else {"PYTHONPATH": before}


def refused(trial: Trial) -> None:
    """Ask for what the cluster does not have."""
    trial.add("more CPUs than a node has", trial.run("refused", "--omp-nthreads", "999", scans=1))


def without_accounting(trial: Trial) -> None:
    """Let one scan be damaged, on a cluster on which sacct cannot say how jobs ended."""
    damaged = trial.folder / f"data/bids/sub-{FEW:02d}/anat/sub-{FEW:02d}_T1w.nii.gz"
    kept = damaged.read_bytes()
    damaged.write_bytes(kept[: len(kept) // 2])
    run = trial.run("no_accounting")
    trial.add("without sacct, one scan damaged", run)
    damaged.write_bytes(kept)
    trial.add("without sacct, memory limit of 150 MiB", trial.run("no_accounting", "--slurm-args=--mem=150M"))
    trial.add("without sacct, the same with enough", trial.run("no_accounting"))


WITH = (
    normal_and_again, cancelled, killed, memory, time_limit, interrupted, killed_run, other_node, edited, refused,
)  # fmt: skip
WITHOUT = (without_accounting,)


def make_dataset(folder: Path) -> None:
    """Write the scans and the atlas."""
    template, atlas = mni152(2), mni152(SPACING).image
    folder.mkdir()
    save_image(np.asarray(atlas.dataobj), atlas.affine, folder / "atlas.nii.gz")
    (folder / "bids").mkdir()
    (folder / "bids/dataset_description.json").write_text('{"Name": "SIMULATED", "BIDSVersion": "1.10.0"}')
    for number in range(1, SCANS + 1):
        rng = np.random.default_rng([0, number])
        image, _ = scan(template, random_map(template, rng), Appearance(bias=0.05, noise=0.02, spacing=SPACING), rng)
        path = folder / f"bids/sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        save_image(np.asarray(image.dataobj), image.affine, path)


def counting(folder: Path) -> Path:
    """Write scripts that count calls of SLURM's commands, if the environment says where; return their folder."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    for name in COMMANDS:
        real = shutil.which(name)
        script = commands / name
        script.write_text(f'#!/bin/sh\n[ -z "$COUNTED" ] || echo {name} >> "$COUNTED"\nexec {real} "$@"\n')
        script.chmod(0o755)
    return commands


def table(rows: Sequence[tuple[str, Run, str]], version: str) -> str:
    """Return the trials as a page."""
    lines = [
        "# SLURM, tried",
        "",
        "Written by `benchmarks/slurm.py`: a real SLURM of one node (`benchmarks/slurm_cluster.py`), "
        f"simulated scans at {SPACING} mm ({SCANS} in the first two rows, at most {FEW} in the others), engine "
        "`affine` where nothing else is named, one job for each scan. "
        "Status is that of the command; done counts scans with results. What it said are the lines about failed scans, "
        "of several alike the first. " + WATCHED + "Seconds are those of a machine with other work.",
        "",
        f"- nio_pydra {__version__}, {version}, Python {platform.python_version()}, {os.cpu_count()} cores.",
        "",
        "| what | status | done | what it said | seen | seconds | sbatch | squeue | sacct | scancel |",
        "|---|---:|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    for what, run, seen in rows:
        kinds: dict[str, str] = {}
        for line in run.said:
            kinds.setdefault(re.sub(r"sub-\d+|\d+_\d+", "", line), line)
        said = "<br>".join(clean(line) for line in kinds.values())
        calls = " | ".join(str(run.calls[name]) for name in ("sbatch", "squeue", "sacct", "scancel"))
        lines.append(f"| {what} | {run.status} | {run.done} | {said} | {seen} | {run.seconds:.0f} | {calls} |")
    return "\n".join(lines) + "\n"


def clean(line: str) -> str:
    """Return a line without folders of this machine, for a cell of the table."""
    return re.sub(r"(/[\w.-]+)+/(?=[\w.-]+)", ".../", line).replace("|", "\\|")


if __name__ == "__main__":
    main()
