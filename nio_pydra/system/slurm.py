"""SLURM's commands: jobs submitted, asked for and cancelled, many in one call."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nio_pydra.errors import InputError, ProgramError

__all__ = [
    "JobState",
    "accounted",
    "busy_hosts",
    "cancel",
    "cancel_submitted",
    "forget",
    "installed",
    "killing_signal",
    "largest_array",
    "queued",
    "require_usable",
    "submit",
]

SECONDS = 120.0
"""Time for one command. SLURM's own commands give up earlier where the controller does not answer."""
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_submitted: set[str] = set()


@dataclass(frozen=True)
class JobState:
    """State of a job.

    Attributes
    ----------
    name : str
        SLURM's name of the state, as ``RUNNING``.
    memory, time_limit : str
        What the job may use, as SLURM writes it. Empty where unknown.
    waits_for : str
        Why a pending job waits, as SLURM names it.
    """

    name: str
    memory: str = ""
    time_limit: str = ""
    waits_for: str = ""

    @property
    def ended(self) -> bool:
        """Whether the job has ended and will not run again."""
        return self.name in ENDED


def installed() -> bool:
    """Return whether jobs can be submitted from here."""
    return shutil.which("sbatch") is not None


def require_usable(options: str) -> None:
    """Raise `InputError` if jobs cannot be submitted from here with such options of sbatch."""
    if not installed():
        raise InputError("The worker slurm needs the command sbatch, which is absent: run this on a SLURM host.")
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise InputError(f"--slurm-args {options!r} cannot be read ({error}): quote it as in a shell.") from None
    # Options come after = or the next word; anything else would be taken for the batch script.
    for before, word in zip(["", *words], words, strict=False):
        if re.match(r"(-a|--arr)", word):
            raise InputError(f"--slurm-args {word}: each scan is a task of a job array already, leave this out.")
        if re.match(r"(-M|--clu|-W|--wait$|-o|--out|-e|--err|--test-only|--tes)", word):
            raise InputError(
                f"--slurm-args {word}: jobs and their logs must be found again, so that the cluster, the logs and the "
                "way of waiting cannot be chosen: leave this out."
            )
        if not word.startswith("-") and (not before.startswith("-") or "=" in before):
            raise InputError(f"--slurm-args {word}: expected options of sbatch, as --partition=NAME.")


def submit(script: Path, tasks: int, at_a_time: int | None, options: Sequence[str]) -> str:
    """Submit a job array.

    Interrupts wait until the number of the job is known, so that `cancel_submitted` can cancel it.

    Parameters
    ----------
    script : Path
        Batch script.
    tasks : int
        Number of tasks of the array, counted from 0.
    at_a_time : int or None
        Largest number of tasks that run at the same time. None: as many as SLURM allows.
    options : sequence of str
        Options of sbatch.

    Returns
    -------
    str
        Number of the job.

    Raises
    ------
    ProgramError
        If SLURM refuses the job. The message is SLURM's.
    """
    array = f"--array=0-{tasks - 1}" + (f"%{at_a_time}" if at_a_time else "")
    with _interrupts_deferred():
        status, output, errors = _run("sbatch", "--parsable", array, *options, str(script))
        number = output.strip().splitlines()[-1].partition(";")[0] if output.strip() else ""
        if status == 0 and number.isdigit():
            _submitted.add(number)
            return number
    raise ProgramError(" ".join(re.sub(r"^sbatch: (error: )?", "", errors, flags=re.MULTILINE).split()) or "no job")


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Let signals that end this process wait. Python allows this in the main thread only, which alone handles them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)


def queued(jobs: Collection[str]) -> dict[str, JobState] | None:
    """Return the states of jobs that SLURM's controller knows. It forgets a job some minutes after its end.

    Parameters
    ----------
    jobs : collection of str
        Numbers of jobs.

    Returns
    -------
    dict of str to JobState or None
        States by ``JOB_TASK``. None where the controller does not answer.
    """
    if not jobs:
        return {}
    status, output, errors = _run(
        "squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%m|%l|%r", f"--jobs={','.join(sorted(jobs))}"
    )
    if status and "Invalid job id" not in errors:
        return None
    rows = [line.strip().split("|") for line in output.splitlines() if line.count("|") >= 4]
    return {row[0]: JobState(row[1], row[2], row[3], row[4]) for row in rows}


def accounted(jobs: Collection[str]) -> dict[str, JobState]:
    """Return the states of jobs from SLURM's accounting database; empty where there is none.

    Parameters
    ----------
    jobs : collection of str
        Numbers of jobs.

    Returns
    -------
    dict of str to JobState
        States by ``JOB_TASK``.
    """
    if not jobs:
        return {}
    _, output, _ = _run(
        "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,ReqMem,Timelimit",
        f"--jobs={','.join(sorted(jobs))}",
    )  # fmt: skip
    rows = [line.split("|") for line in output.splitlines() if line.count("|") == 3]
    # The state names who cancelled the job: "CANCELLED by 1000".
    return {row[0]: JobState((row[1].split() or [""])[0], row[2], row[3]) for row in rows}


def cancel(jobs: Collection[str]) -> bool:
    """Cancel jobs with all their tasks, or single tasks; return whether SLURM took the order."""
    return not jobs or _run("scancel", *sorted(jobs))[0] == 0


def cancel_submitted() -> None:
    """Cancel the jobs that this process submitted and has not forgotten, because it is about to end."""
    if not cancel(_submitted):
        print(f"SLURM did not cancel these jobs: scancel {' '.join(sorted(_submitted))}", file=sys.stderr)
    _submitted.clear()


def forget(jobs: Collection[str]) -> None:
    """Take jobs that have ended off those that would be cancelled."""
    _submitted.difference_update(jobs)


def killing_signal(task: str) -> int:
    """Return the signal that ended a task, ``JOB_TASK``; 0 if it was none or is forgotten."""
    found = re.search(r"\bExitCode=\d+:(\d+)", _run("scontrol", "--oneliner", "show", "job", task)[1])
    return int(found[1]) if found else 0


def busy_hosts() -> set[str]:
    """Return the nodes, without domains, on which jobs of this user run; empty without SLURM."""
    status, output, _ = _run(
        "squeue", "--noheader", "--states=RUNNING,COMPLETING", f"--user={os.getuid()}", "--format=%N"
    )
    listed = ",".join(set(output.split()))
    if status or not listed:
        return set()
    return {name.partition(".")[0] for name in _run("scontrol", "show", "hostnames", listed)[1].split()}


def largest_array() -> int:
    """Return the largest number of tasks that a job array of this cluster can have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config")[1], re.MULTILINE)
    # The largest index is one less; 1001 is SLURM's default.
    return max(1, int(found[1]) - 1 if found else 1000)


def _run(*command: str) -> tuple[int, str, str]:
    """Run a command; return its status, output and errors. A command that is absent or hangs counts as failed."""
    try:
        # In a session of its own, Ctrl-C in a terminal does not reach it.
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, start_new_session=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr
