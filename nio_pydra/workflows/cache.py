"""pydra's cache: cleaning up after a killed or failed run, and the reason why a job failed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from filelock import Timeout

from nio_pydra.system.disk import full_disk
from nio_pydra.system.files import write_text
from nio_pydra.system.slurm import busy_hosts
from nio_pydra.workflows.pydra_private import (
    are_unchanged,
    checksum,
    discard_torn_hashes,
    job_lock,
    lock_holder,
    locks,
    own_holder,
    result_files,
    stored_error,
    stored_results,
    workflow_error,
)

__all__ = [
    "discard_dead_hosts_locks", "discard_locks_of", "discard_unfinished", "failure_reason",
    "in_use", "own_folder",
]  # fmt: skip

TORN_LOCK_SECONDS = 60.0
"""Age from which an empty lock counts as left by a killed process. NFS shows what another host wrote half a minute
late."""
FRESH_SECONDS = 20.0
"""Age up to which another run may still need a failed result."""
INDEX = "usable.json"
"""File in pydra's cache that remembers which results were found usable, so that each is read once."""
Entry = list[Any]
"""Time and size of a result file, and the files that the result names."""


@contextmanager
def in_use(work_dir: Path, *, discard_locks: bool, stay_alone: bool = False) -> Iterator[bool]:
    """Mark a work folder as in use, and delete files in it that a killed run left and that would mislead this one.

    pydra locks each job by a file, and waits for ever if it cannot tell that the owner of a lock is dead. That happens
    when a run was killed on another host or in another container, or between creating the file and writing into it.
    This function takes a lock that the kernel releases when the process ends. A run that is the only one to hold it
    can delete all other locks in the folder. Beside other runs it deletes those of hosts without a living process.

    While the folder is in use, such locks are deleted as they appear. So are locks that stay empty, which are left by
    processes that were killed, mostly for lack of memory.

    Parameters
    ----------
    work_dir : Path
        Folder with pydra's cache and hashes.
    discard_locks : bool
        Whether to delete locks. False in a process whose run was started by another one that does so, and where jobs
        may outlive the run that started them.
    stay_alone : bool
        Whether other runs have to wait until this one leaves the folder, if none is using it.

    Yields
    ------
    bool
        Whether no other run was using the folder. False where the file system cannot tell.
    """
    with (work_dir / "in_use").open("w") as marker, _host_marker(work_dir, own_holder(work_dir)[1]) as on_host:
        with suppress(OSError):
            fcntl.flock(on_host, fcntl.LOCK_SH)
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another run is using it, or the file system has no such locks
            alone = False
        else:
            alone = True
        if alone and discard_locks:
            for lock in locks(work_dir):
                lock.unlink(missing_ok=True)
        with suppress(OSError):
            # Waits while another run that has the folder to itself cleans it.
            if not (alone and stay_alone):
                fcntl.flock(marker, fcntl.LOCK_SH)
        discard_torn_hashes(work_dir)
        if discard_locks and not alone:
            discard_dead_hosts_locks(work_dir)
        ended = threading.Event()
        if discard_locks:
            threading.Thread(target=_discard_dead_locks, args=(work_dir, ended), daemon=True).start()
        before = Path.cwd()
        try:
            yield alone
        finally:
            ended.set()
            os.chdir(before)  # pydra leaves the process in some job's folder


def _host_marker(work_dir: Path, host: str) -> IO[str]:
    """Open the file that processes of a host hold locked while they use the work folder."""
    folder = work_dir / "hosts"
    folder.mkdir(exist_ok=True)
    return (folder / quote(host, safe="")).open("a")


def _discard_dead_locks(work_dir: Path, ended: threading.Event) -> None:
    """Delete locks that have been empty for a while, and those of dead hosts, until the run ends."""
    while not ended.wait(TORN_LOCK_SECONDS):
        for lock in locks(work_dir):
            with suppress(FileNotFoundError):
                found = lock.stat()
                if found.st_size == 0 and found.st_mtime < time.time() - TORN_LOCK_SECONDS:
                    lock.unlink()
        discard_dead_hosts_locks(work_dir)


def discard_dead_hosts_locks(work_dir: Path) -> None:
    """Delete locks of hosts on which no process uses the work folder any more.

    Locks of this host are left to filelock, which knows the processes here. A host on which SLURM runs a job of this
    user counts as alive, because on some shared file systems the kernel's locks are invisible to other hosts.
    """
    held: dict[str, list[Path]] = {}
    for lock in locks(work_dir):
        if holder := lock_holder(lock):
            held.setdefault(holder[1], []).append(lock)
    held.pop(own_holder(work_dir)[1], None)
    busy: set[str] | None = None
    for host, left in held.items():
        if not (work_dir / "hosts" / quote(host, safe="")).exists():
            continue  # it used the folder before hosts were noted: nothing is known
        with _host_marker(work_dir, host) as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            busy = busy_hosts() if busy is None else busy
            if re.split(r"[.?]", host)[0] not in busy:
                for lock in left:
                    lock.unlink(missing_ok=True)


def discard_locks_of(work_dir: Path, holder: tuple[int, str]) -> None:
    """Delete the locks of a process, by its number and host, that is known to have ended."""
    for lock in locks(work_dir):
        if lock_holder(lock) == holder:
            lock.unlink(missing_ok=True)


def own_folder(work_dir: Path) -> Path:
    """Make and return a folder in a work folder, so that files of other programs there are not deleted."""
    folder = work_dir.resolve() / "nio_pydra"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def discard_unfinished(cache: Path, *, alone: bool = True) -> None:
    """Delete results that must not be used again, except those of jobs that another run is computing.

    pydra computes the result of a failed job anew, but the workflow around it may read the old result first. An
    interrupted job leaves a result that claims success and holds no outputs. pydra would also use a result whose files
    were deleted, cut off or changed since.

    Parameters
    ----------
    cache : Path
        pydra's cache folder. It may be absent.
    alone : bool
        Whether no other run uses the folder. If one does, failures of the last seconds are kept, because that run may
        not have read them yet.
    """
    index = cache / INDEX
    known, usable = _read_index(index), {}
    for stored in stored_results(cache):
        name = stored.parent.name
        if entry := _usable(stored, known.get(name)):
            usable[name] = entry
            continue
        with suppress(Timeout, FileNotFoundError), job_lock(stored.parent).acquire(timeout=0):
            fresh = not alone and time.time() - stored.stat().st_mtime < FRESH_SECONDS
            if not fresh and not _usable(stored, None):
                shutil.rmtree(stored.parent, ignore_errors=True)
    if usable != known:
        with suppress(OSError):  # it saves time only
            write_text(json.dumps(usable), index)


def _usable(stored: Path, known: Entry | None) -> Entry | None:
    """Return what to remember of a result that can be used. None of others.

    Parameters
    ----------
    stored : Path
        Result file of a job.
    known : list or None
        What an earlier run remembered of it: then the result, which takes time to read, is not read again.
    """
    try:
        now = stored.stat()
    except OSError:
        return None
    state = (now.st_mtime_ns, now.st_size)
    if known is not None and tuple(known[:2]) == state:
        return known if are_unchanged(stored, map(Path, known[2])) else None
    files = result_files(stored)
    if files is None or not are_unchanged(stored, files):
        return None
    return [*state, list(map(str, files))]


def _read_index(path: Path) -> dict[str, Entry]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    return {}


def failure_reason(cache: Path, task: Any) -> tuple[str, str]:
    """Return the reason why a job failed.

    Parameters
    ----------
    cache : Path
        pydra's cache folder.
    task : pydra task
        The task of the job.

    Returns
    -------
    reason : str
        The message of an error of this package, or the kind and first line of any other error.
    details : str
        The traceback that pydra stored.
    """
    details = stored_error(cache / checksum(task))
    if not details:
        return full_disk([cache]) or "it did not run to its end, and pydra stored no error", ""
    # The output that follows the message of a ProgramError stands in the details.
    own = r"\b(?:InputError|FullDiskError|ComputationError|ProgramError): (.+?)(?: The end of its output:)?$"
    if sentence := re.search(own, details, re.MULTILINE):
        return sentence[1], details
    errors = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception)\w*): (.+)$", details, re.MULTILINE)
    errors = [": ".join(error) for error in errors if not workflow_error(error[1])]
    return (errors[-1] if errors else "unknown error"), details
