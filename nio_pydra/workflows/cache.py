"""Care of pydra's cache: what a killed or failed run left, and why a job failed."""

from __future__ import annotations

import fcntl
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cloudpickle
from pydra.utils.hash import PersistentCache

__all__ = ["discard_torn_locks", "discard_unfinished", "failure_reason", "in_use", "stored_error"]


@contextmanager
def in_use(work_dir: Path, *, discard_locks: bool) -> Iterator[None]:
    """Mark a work folder as in use, and delete the locks that a killed run left in it.

    pydra locks every job by a file, and waits for ever for one whose owner cannot be proved dead: a run killed on
    another host or in another container, or in the moment between creating the file and writing into it. The kernel
    in contrast releases this function's lock with its process, so whoever is alone with the folder knows that all
    other locks in it are dead.

    Parameters
    ----------
    work_dir : pathlib.Path
    discard_locks : bool
        False where jobs may outlive the run that started them, as under SLURM.
    """
    with (work_dir / "in_use").open("w") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another run is using it, or the file system has no such locks
            alone = False
        else:
            alone = True
        if alone and discard_locks:
            for folder in ("pydra", "hashes"):
                for lock in (work_dir / folder).glob("*.lock"):
                    lock.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(marker, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def discard_torn_locks(cache: Path) -> None:
    """Delete the locks in pydra's cache folder, and in its cache of hashes, that do not say whose they are.

    Such a lock is left by a process killed between creating the file and writing into it, and is waited for, for
    ever. To be called when processes of this run have been killed and no other one is at work.

    Parameters
    ----------
    cache : pathlib.Path
    """
    for folder in (cache, Path(PersistentCache.location_default())):
        for lock in folder.glob("*.lock"):
            with suppress(FileNotFoundError):
                if lock.stat().st_size == 0:
                    lock.unlink()


def discard_unfinished(cache: Path) -> None:
    """Delete results that must not be found again.

    A failed job's result is computed anew by pydra, but the workflow around it may read the old one first. A job
    ended by an interrupt leaves a result that claims success and holds no outputs.

    Parameters
    ----------
    cache : pathlib.Path
        pydra's cache folder; may be absent.
    """
    for stored in cache.glob("*/_result.pklz"):
        try:
            with stored.open("rb") as stream:
                result = cloudpickle.load(stream)
            usable = not result.errored and result.outputs is not None
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, OSError):
            usable = False
        if not usable:
            shutil.rmtree(stored.parent, ignore_errors=True)


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
        The sentence of an `InputError`, or the kind and first line of any other error.
    details : str
        All that pydra stored.
    """
    details = stored_error(cache / checksum)
    if not details:
        return "it did not run to its end, and pydra stored no error", ""
    if sentence := re.search(r"\bInputError: (.+)$", details, re.MULTILINE):
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
