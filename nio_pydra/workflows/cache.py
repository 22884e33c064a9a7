"""Care of pydra's cache: what a killed or failed run left, and why a job failed."""

from __future__ import annotations

import fcntl
import os
import pickle
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import cloudpickle
from fileformats.core import FileSet
from filelock import SoftFileLock, Timeout

from nio_pydra.system.disk import full_disk

__all__ = ["discard_unfinished", "failure_reason", "in_use", "stored_error"]

TORN_LOCK_SECONDS = 10.0
FRESH_SECONDS = 20.0
HASH_BYTES = 16
"""Of the hashes that pydra keeps."""


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
            for lock in _locks(work_dir):
                lock.unlink(missing_ok=True)
        with suppress(OSError):
            # Waits if need be: a run that cleans has the folder to itself for a moment.
            fcntl.flock(marker, fcntl.LOCK_SH)
        _discard_torn_hashes(work_dir / "hashes")
        left = threading.Event()
        if discard_locks:
            threading.Thread(target=_discard_torn_locks, args=(work_dir, left), daemon=True).start()
        before = Path.cwd()
        try:
            yield alone
        finally:
            left.set()
            os.chdir(before)  # pydra leaves the process in some job's folder


def _discard_torn_hashes(folder: Path) -> None:
    """Delete hashes that were not written whole, for lack of room or of time.

    pydra would take them as they are. All files with an empty hash are the same to it: one scan would be given the
    results of another.
    """
    for path in folder.glob("*"):
        with suppress(FileNotFoundError, Timeout):  # another run was faster, or is at it
            if path.suffix != ".lock" and path.stat().st_size != HASH_BYTES:
                with SoftFileLock(path.with_suffix(".lock")).acquire(timeout=0):
                    path.unlink(missing_ok=True)


def _locks(work_dir: Path) -> Iterator[Path]:
    """All locks of pydra's jobs, and of its cache of hashes."""
    for folder in ("pydra", "hashes"):
        yield from (work_dir / folder).glob("*.lock")


def _discard_torn_locks(work_dir: Path, left: threading.Event) -> None:
    """Until the folder is left, delete locks that have been empty for a while: they name no owner."""
    while not left.wait(TORN_LOCK_SECONDS):
        for lock in _locks(work_dir):
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
    for stored in cache.glob("*/_result.pklz"):
        if _is_usable(stored):
            continue
        # pydra's own lock of the job, which is held as long as anything is written there.
        with (
            suppress(Timeout, FileNotFoundError),
            SoftFileLock(stored.parent.with_suffix(".lock")).acquire(timeout=0),
        ):
            fresh = not alone and time.time() - stored.stat().st_mtime < FRESH_SECONDS
            if not fresh and not _is_usable(stored):
                shutil.rmtree(stored.parent, ignore_errors=True)


def _is_usable(stored: Path) -> bool:
    try:
        with stored.open("rb") as stream:
            result = cloudpickle.load(stream)
        return not result.errored and result.outputs is not None and _is_lasting(stored, result)
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, OSError):
        return False


def _is_lasting(stored: Path, result: Any) -> bool:
    """Return whether a result can be used again.

    The workflow around all scans is none of those: it would hide that one of its scans has lost its result. The files
    of all others were written before the result itself, so that whatever is newer, empty or gone was changed since.
    """
    if type(result.task).__name__ == "Split":
        return False
    values = [getattr(result.outputs, field.name) for field in attrs.fields(type(result.outputs))]
    files = [path.stat() for value in values if isinstance(value, FileSet) for path in value.fspaths]
    written = stored.stat().st_mtime_ns
    return all(file.st_size and file.st_mtime_ns <= written for file in files)


def failure_reason(cache: Path, checksum: str) -> tuple[str, str]:
    """Say why a job failed.

    Parameters
    ----------
    cache : pathlib.Path
    checksum : str
        Of the job.

    Returns
    -------
    reason : str
        The sentence of an error of this package, or the kind and first line of any other error.
    details : str
        All that pydra stored.
    """
    details = stored_error(cache / checksum)
    if not details:
        return full_disk([cache]) or "it did not run to its end, and pydra stored no error", ""
    if sentence := re.search(r"\b(?:InputError|FullDiskError|ComputationError): (.+)$", details, re.MULTILINE):
        return sentence[1], details
    errors = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception)\w*): (.+)$", details, re.MULTILINE)
    # The outermost errors are pydra's own, about the workflow that holds the job.
    own = [(kind, message) for kind, message in errors if not message.startswith("Workflow job")]
    return (f"{own[-1][0]}: {own[-1][1]}" if own else "unknown error"), details


def stored_error(folder: Path) -> str:
    """Return the traceback that pydra stored in a job's cache folder; empty where there is none."""
    try:
        with (folder / "_error.pklz").open("rb") as stream:
            return "".join(cloudpickle.load(stream)["error message"])
    except (OSError, EOFError, pickle.UnpicklingError):
        return ""
