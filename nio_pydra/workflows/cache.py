"""pydra's cache: cleaning up after a killed or failed run, and the reason why a job failed."""

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

from nio_pydra.errors import InputError
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

__all__ = ["clean_work_folder", "discard_unfinished", "failure_reason", "in_use", "own_folder"]

TORN_LOCK_SECONDS = 10.0
"""Age from which an empty lock counts as left by a killed process."""
FRESH_SECONDS = 20.0
"""Age up to which another run may still need a failed result."""


@contextmanager
def in_use(work_dir: Path, *, discard_locks: bool) -> Iterator[bool]:
    """Mark a work folder as in use, and delete files in it that a killed run left and that would mislead this one.

    pydra locks each job by a file, and waits for ever if it cannot tell that the owner of a lock is dead. That happens
    when a run was killed on another host or in another container, or between creating the file and writing into it.
    This function takes a lock that the kernel releases when the process ends. A run that is the only one to hold it
    can delete all other locks in the folder.

    While the folder is in use, locks that stay empty are deleted as well. They are left by processes of this run that
    were killed, mostly for lack of memory.

    Parameters
    ----------
    work_dir : Path
        Folder with pydra's cache and hashes.
    discard_locks : bool
        Whether to delete locks. False where jobs may outlive the run that started them, as under SLURM.

    Yields
    ------
    bool
        Whether no other run was using the folder. False where the file system cannot tell.
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
            # Waits while another run that has the folder to itself cleans it.
            fcntl.flock(marker, fcntl.LOCK_SH)
        discard_torn_hashes(work_dir)
        ended = threading.Event()
        if discard_locks:
            threading.Thread(target=_discard_torn_locks, args=(work_dir, ended), daemon=True).start()
        before = Path.cwd()
        try:
            yield alone
        finally:
            ended.set()
            os.chdir(before)  # pydra leaves the process in some job's folder


def _discard_torn_locks(work_dir: Path, ended: threading.Event) -> None:
    """Delete locks that have been empty for a while, until the run ends: they name no owner."""
    while not ended.wait(TORN_LOCK_SECONDS):
        for lock in locks(work_dir):
            with suppress(FileNotFoundError):
                found = lock.stat()
                if found.st_size == 0 and found.st_mtime < time.time() - TORN_LOCK_SECONDS:
                    lock.unlink()


def own_folder(work_dir: Path) -> Path:
    """Make and return a folder in a work folder, so that files of other programs there are not deleted."""
    folder = work_dir.resolve() / "nio_pydra"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clean_work_folder(work_dir: Path) -> None:
    """Delete what earlier runs left in a work folder.

    Raises
    ------
    InputError
        If another run uses the folder.
    """
    folder = own_folder(work_dir)
    with in_use(folder, discard_locks=False) as alone:
        if not alone:
            raise InputError(
                f"--clean-workdir cannot delete {folder}, because another run uses it: wait for that run, or give "
                "another -w."
            )
        for name in ("pydra", "hashes"):
            shutil.rmtree(folder / name, ignore_errors=True)


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
    for stored in stored_results(cache):
        if is_usable(stored):
            continue
        with suppress(Timeout, FileNotFoundError), job_lock(stored.parent).acquire(timeout=0):
            fresh = not alone and time.time() - stored.stat().st_mtime < FRESH_SECONDS
            if not fresh and not is_usable(stored):
                shutil.rmtree(stored.parent, ignore_errors=True)


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
