"""Scans of a dataset as SLURM jobs, seen from the command: arrays are submitted, asked after, and cancelled if need be.

What a job is, is in :mod:`nio_pydra.workflows.slurm_jobs`.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nio_pydra.errors import InputError, ProgramError
from nio_pydra.system import slurm
from nio_pydra.system.files import HOST
from nio_pydra.system.slurm import JobState
from nio_pydra.system.wording import counted
from nio_pydra.workflows.cache import discard_locks_of
from nio_pydra.workflows.slurm_jobs import Resources, same_scans, submit_array

__all__ = ["Lost", "Scans", "live_jobs", "run_scans"]

log = logging.getLogger("nio_pydra")

FOLDER = "slurm"
SHORTEST_WAIT, LONGEST_WAIT = 2.0, 30.0
"""Seconds between two questions to SLURM, in the beginning and later."""
SLOW_FILES_SECONDS = 60.0
"""Time in which a result that a node has written becomes visible here: NFS remembers absent files that long."""
HOPELESS = re.compile(
    "BadConstraints|InvalidAccount|InvalidQOS|PartitionConfig|PartitionNodeLimit|PartitionTimeLimit|.*PerJob(Limit)?"
)
"""Why a job waits that will never start."""
HOPELESS_SECONDS = 120.0
"""Time after which such a job is given up: the reason may pass while nodes come and go."""
TEMPORARY = re.compile("contact|connect|timed out|timeout|Zero Bytes|temporar|Submit|submit limit", re.IGNORECASE)
"""What SLURM says where it takes no job now, but may take one later: it does not answer, or a limit of jobs is met."""
FORGOTTEN = 5
"""Number of questions after which a job counts as lost that the controller has forgotten and that the database does
not say has ended."""
WHY = {
    "OUT_OF_MEMORY": "ran out of memory{memory}: give more by --slurm-args='--mem=...'",
    "TIMEOUT": "reached its time limit{time}: give more by --slurm-args='--time=...'",
    "DEADLINE": "reached its deadline",
    "CANCELLED": "was cancelled",
    "PREEMPTED": "was preempted by another job",
    "NODE_FAIL": "ended because its node failed",
    "BOOT_FAIL": "ended because its node did not start",
    "REVOKED": "was revoked",
    "HOPELESS": "could not start (SLURM's reason: {why}) and was cancelled: correct --slurm-args or --omp-nthreads",
    "FAILED": "failed",
    "COMPLETED": "ended, but its results cannot be seen here: is the work folder shared with the node?",
    "UNKNOWN": "ended without a result, and SLURM no longer knows why",
}
OUT_OF_MEMORY = re.compile(
    r"^slurmstepd\S* error: .*(exceeded .*memory limit|oom[-_]kill)", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class Scans:
    """Scans to register.

    Attributes
    ----------
    inputs : dict of str to dict
        Inputs of the `Subject` workflow by name of the scan.
    finished : callable
        Function that tells from the inputs whether results are stored.
    store_failure : callable or None
        Function that stores why a scan failed, from its inputs and what became of its job, and returns the reason.
    """

    inputs: Mapping[str, dict[str, Any]]
    finished: Callable[[dict[str, Any]], bool]
    store_failure: Callable[[dict[str, Any], Lost], str] | None = None


@dataclass(frozen=True)
class Lost:
    """Why a job left no result.

    Attributes
    ----------
    reason : str
        Sentence about the state of the job.
    details : str
        End of its log.
    killed : bool
        Whether SLURM or a person ended it. Otherwise it ended by itself, and pydra may have stored a better reason.
    """

    reason: str
    details: str
    killed: bool


@dataclass
class _Watched:
    """A task of a job array, as last seen."""

    name: str
    inputs: dict[str, Any]
    log: Path
    state: JobState = field(default_factory=lambda: JobState("PENDING"))
    unseen: int = 0
    hopeless_since: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be expected."""
        return self.state.ended or self.state.name in ("UNKNOWN", "HOPELESS")


def run_scans(
    scans: Scans, work_dir: Path, resources: Resources, *, options: str = "", at_a_time: int | None = None
) -> dict[str, Lost]:
    """Register scans by SLURM jobs, and wait for them. If this is interrupted, the jobs are cancelled.

    Scans for which another run in this work folder has live jobs are not submitted again.

    Parameters
    ----------
    scans : Scans
        Scans to register.
    work_dir : Path
        Folder with pydra's cache, shared with the nodes.
    resources : Resources
        What each job asks for. SBATCH_* variables and `options` replace it.
    options : str
        Options of sbatch, as in a shell.
    at_a_time : int or None
        Largest number of jobs that run at the same time. None: as many as SLURM allows.

    Returns
    -------
    dict of str to Lost
        Scans without results, by name, and what became of their jobs.

    Raises
    ------
    InputError
        If SLURM refuses the first jobs.
    """
    watched = _adopt(scans, work_dir)
    adopted = {task.name for task in watched.values()}
    names = [name for name in scans.inputs if name not in adopted]
    # The other run may have been killed, or have cancelled its jobs: then they are submitted here after all.
    folder = work_dir / FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}_{HOST}_{os.getpid()}"
    size = slurm.largest_array()
    chunks = [names[start : start + size] for start in range(0, len(names), size)]
    lost: dict[str, Lost] = {}
    mine: set[str] = set()
    wait, told, refused, silent = SHORTEST_WAIT, "", "", False
    try:
        while chunks or watched:
            refusal = ""
            while chunks and not refusal:
                try:
                    own = {name: scans.inputs[name] for name in chunks[0]}
                    number = submit_array(own, folder, resources, options, at_a_time)
                except ProgramError as error:
                    refusal = str(error)
                    continue
                chunks.pop(0)
                mine.add(number)
                watched |= _watch(folder, number, own)
            if refusal and not watched and not TEMPORARY.search(refusal):
                raise InputError(f"SLURM refuses the jobs ({refusal}): correct --slurm-args or --omp-nthreads.")
            if refusal and refusal != refused:
                log.info("SLURM takes no more jobs for now (%s); they are tried again later.", refusal)
                refused = refusal
            states = slurm.queued({key.partition("_")[0] for key in watched}) if watched else {}
            if states is None:
                if not silent:
                    log.warning("SLURM does not answer; waiting until it does.")
                silent = True
            else:
                silent = False
                _update(watched, states)
                _give_up(watched, mine)
                lost |= _collect(watched, scans, work_dir)
                if again := [name for name in lost if name in adopted]:
                    adopted.difference_update(again)
                    chunks.append(again)
                    lost = {name: why for name, why in lost.items() if name not in again}
                if (now := _counts(watched)) != told and watched:
                    log.info("SLURM: %s", now)
                    told = now
            if chunks or watched:
                time.sleep(wait)
                wait = min(LONGEST_WAIT, 1.2 * wait)
    except BaseException:
        slurm.cancel(mine)
        raise
    finally:
        slurm.forget(mine)
    _forget(folder, keep=bool(lost))
    return lost


def live_jobs(work_dir: Path) -> bool:
    """Return whether SLURM jobs of this work folder are waiting or running.

    Arrays that have ended are forgotten, and locks that tasks left when they were killed are deleted.
    """
    records = {record.stem.removeprefix("array_"): record for record in (work_dir / FOLDER).glob("*/array_*.json")}
    if not slurm.installed():
        return False  # the folder was brought here from a cluster
    states = slurm.queued(records)
    if states is None:
        return bool(records)
    live = {key.partition("_")[0] for key, state in states.items() if not state.ended}
    for number, record in records.items():
        for holder in record.parent.glob(f"*/{number}_*.holder"):
            state = states.get(holder.stem)
            if state is None or state.ended:
                _unlock(work_dir, holder)
        if number not in live:
            record.unlink(missing_ok=True)
    return bool(live)


def _watch(folder: Path, number: str, inputs: Mapping[str, dict[str, Any]]) -> dict[str, _Watched]:
    part = json.loads((folder / f"array_{number}.json").read_text())["part"]
    return {
        f"{number}_{index}": _Watched(name, own, folder / part / f"{number}_{index}.log")
        for index, (name, own) in enumerate(inputs.items())
    }


def _adopt(scans: Scans, work_dir: Path) -> dict[str, _Watched]:
    """Return the live tasks of other runs that compute the same results, so that they are waited for."""
    found: dict[str, _Watched] = {}
    for record in (work_dir / FOLDER).glob("*/array_*.json"):
        number = record.stem.removeprefix("array_")
        with suppress(OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError):
            part = record.parent / json.loads(record.read_text())["part"]
            same = same_scans(part, scans.inputs)
            states = slurm.queued({number}) or {}
            for index, name in same.items():
                state = states.get(f"{number}_{index}")
                if state is not None and not state.ended:
                    found[f"{number}_{index}"] = _Watched(name, scans.inputs[name], part / f"{number}_{index}.log")
    if found:
        log.info("Jobs of an earlier run exist for %s", counted(len(found), "scan"))
    return found


def _update(watched: Mapping[str, _Watched], states: Mapping[str, JobState]) -> None:
    """Note the states of tasks. Those that the controller has forgotten are looked up in the database."""
    missing = [key for key in watched if key not in states]
    stored = slurm.accounted({key.partition("_")[0] for key in missing})
    for key, task in watched.items():
        before, known = task.state, states.get(key)
        if known is None:
            known = stored.get(key)
            task.unseen += 1
            if (known is None or not known.ended) and task.unseen < FORGOTTEN:
                continue
            if known is None or not known.ended:
                known = replace(before, name="UNKNOWN")
        task.state = replace(
            known, memory=known.memory or before.memory, time_limit=known.time_limit or before.time_limit
        )
        if before.name == "PENDING" != task.state.name:
            log.info("%s: started (SLURM job %s)", task.name, key)


def _give_up(watched: Mapping[str, _Watched], mine: Collection[str]) -> None:
    """Cancel tasks of this run that will never start."""
    for key, task in watched.items():
        if task.state.name != "PENDING" or not HOPELESS.fullmatch(task.state.waits_for):
            task.hopeless_since = None
        elif task.hopeless_since is None:
            task.hopeless_since = time.monotonic()
        elif time.monotonic() - task.hopeless_since > HOPELESS_SECONDS and key.partition("_")[0] in mine:
            slurm.cancel([key])
            task.state = replace(task.state, name="HOPELESS")


def _collect(watched: dict[str, _Watched], scans: Scans, work_dir: Path) -> dict[str, Lost]:
    """Take the tasks that have ended out of `watched`; return what became of those without results."""
    lost = {}
    ended = [key for key, task in watched.items() if task.ended]
    late = time.monotonic() + SLOW_FILES_SECONDS
    for key in ended:
        task = watched.pop(key)
        done = scans.finished(task.inputs)
        while not done and task.state.name == "COMPLETED" and time.monotonic() < late:
            time.sleep(1)
            done = scans.finished(task.inputs)
        if done:
            log.info("%s: done", task.name)
        else:
            lost[task.name] = found = _lost(key, task)
            reason = scans.store_failure(task.inputs, found) if scans.store_failure else found.reason
            log.info("%s: failed: %s", task.name, reason)
            _unlock(work_dir, task.log.with_suffix(".holder"))
    return lost


def _unlock(work_dir: Path, holder: Path) -> None:
    """Delete the locks of a task that has ended, wherever it ran."""
    with suppress(OSError, ValueError):
        number, host = json.loads(holder.read_text())
        discard_locks_of(work_dir, (number, host))
        holder.unlink()


def _lost(key: str, task: _Watched) -> Lost:
    """Return a sentence about a task that left no result, with its log."""
    state = task.state
    try:
        lines = task.log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if OUT_OF_MEMORY.search("\n".join(lines)):
        state = replace(state, name="OUT_OF_MEMORY")  # SLURM's state tells it only where control groups watch memory
    killed = state.name not in ("FAILED", "COMPLETED", "UNKNOWN")
    own = [line.partition(": error: ")[2] for line in lines if line.startswith("nio-pydra: error: ")]
    if own and not killed:
        return Lost(own[-1], "\n".join(lines[-40:]), True)
    why = WHY.get(state.name, f"ended as {state.name}").format(
        memory=f" ({state.memory})" if state.memory else "",
        time=f" ({state.time_limit})" if state.time_limit else "",
        why=state.waits_for,
    )
    if state.name == "FAILED" and (number := slurm.killing_signal(key)):
        why = f"was killed by signal {number}" + (" (often: out of memory)" if number == signal.SIGKILL else "")
    where = f" (its log: {task.log})" if lines else ""
    return Lost(f"SLURM job {key} {why}{where}", "\n".join(lines[-40:]), killed)


def _counts(watched: Mapping[str, _Watched]) -> str:
    """Return how many tasks are in which state, and why some wait."""
    counts = Counter(task.state.name.lower() for task in watched.values())
    reasons = {task.state.waits_for for task in watched.values() if task.state.name == "PENDING"} - {"", "None"}
    text = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{text} (waiting for: {', '.join(sorted(reasons))})" if reasons else text


def _forget(folder: Path, *, keep: bool) -> None:
    """Delete the records of ended arrays, and all files of the run unless logs are needed."""
    for record in folder.glob("array_*.json"):
        record.unlink(missing_ok=True)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
