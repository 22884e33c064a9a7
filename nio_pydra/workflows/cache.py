"""Care of pydra's cache: what a killed or failed run left, and why a job failed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from nio_pydra.system.disk import full_disk
from nio_pydra.workflows.pydra_private import (
    checksum,
    discard_torn_hashes,
    is_usable,
    job_lock,
    locks,
    stored_error,
    stored_results,
    workflow_error,
)

__all__ = ["discard_unfinished", "failure_reason", "in_use"]

TORN_LOCK_SECONDS = 10.0
FRESH_SECONDS = 20.0


@contextmanager
def in_use(work_dir: Path, *, discard_locks: bool) -> Iterator[bool]:
    """Mark a work folder as in use, and delete what a killed run left in it that would mislead this one.

    pydra locks every job by a file, and waits for ever for one whose owner cannot be proved dead: a run killed on
    another host or in another container, or in the moment between creating the file and writing into it. The kernel
    in contrast releases this function's lock with its process, so whoever is alone with the folder knows that all
    other locks in it are dead. While the folder is in use, locks that stay empty are deleted too: a process of this
    very run may be killed in that moment, mostly for lack of memory.

    Parameters
    ----------
    work_dir : pathlib.Path
    discard_locks : bool
        False where jobs may outlive the run that started them, as under SLURM.

    Yields
    ------
    bool
        Whether no other run was using the folder; False where the file system cannot tell.
    """
    with (work_dir / "in_use").open("w") as marker:
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
            # Waits if need be: a run that cleans has the folder to itself for a moment.
            fcntl.flock(marker, fcntl.LOCK_SH)
        discard_torn_hashes(work_dir)
        left = threading.Event()
        if discard_locks:
            threading.Thread(target=_discard_torn_locks, args=(work_dir, left), daemon=True).start()
        before = Path.cwd()
        try:
            yield alone
        finally:
            left.set()
            os.chdir(before)  # pydra leaves the process in some job's folder


def _discard_torn_locks(work_dir: Path, left: threading.Event) -> None:
    """Until the folder is left, delete locks that have been empty for a while: they name no owner."""
    while not left.wait(TORN_LOCK_SECONDS):
        for lock in locks(work_dir):
            with suppress(FileNotFoundError):
                found = lock.stat()
                if found.st_size == 0 and found.st_mtime < time.time() - TORN_LOCK_SECONDS:
                    lock.unlink()


def discard_unfinished(cache: Path, *, alone: bool = True) -> None:
    """Delete results that must not be found again, except those of jobs that another run is at.

    A failed job's result is computed anew by pydra, but the workflow around it may read the old one first. A job
    ended by an interrupt leaves a result that claims success and holds no outputs. A result whose files were deleted,
    cut off or changed since would be used as it is.

    Parameters
    ----------
    cache : pathlib.Path
        pydra's cache folder; may be absent.
    alone : bool
        No other run uses the folder. Otherwise a failure of the last seconds is kept: the run that it belongs to may
        not have read it yet.
    """
    for stored in stored_results(cache):
        if is_usable(stored):
            continue
        with suppress(Timeout, FileNotFoundError), job_lock(stored.parent).acquire(timeout=0):
            fresh = not alone and time.time() - stored.stat().st_mtime < FRESH_SECONDS
            if not fresh and not is_usable(stored):
                shutil.rmtree(stored.parent, ignore_errors=True)


def failure_reason(cache: Path, task: Any) -> tuple[str, str]:
    """Say why a job failed.

    Parameters
    ----------
    cache : pathlib.Path
    task : pydra task
        The one that failed.

    Returns
    -------
    reason : str
        The sentence of an error of this package, or the kind and first line of any other error.
    details : str
        All that pydra stored.
    """
    details = stored_error(cache / checksum(task))
    if not details:
        return full_disk([cache]) or "it did not run to its end, and pydra stored no error", ""
    if sentence := re.search(r"\b(?:InputError|FullDiskError|ComputationError): (.+)$", details, re.MULTILINE):
        return sentence[1], details
    errors = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception)\w*): (.+)$", details, re.MULTILINE)
    own = [(kind, message) for kind, message in errors if not workflow_error(message)]
    return (f"{own[-1][0]}: {own[-1][1]}" if own else "unknown error"), details
