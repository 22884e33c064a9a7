"""The parts of pydra that are not its public interface, and the files in its cache. No other module uses them.

The public interface is `pydra.compose`, which defines tasks and workflows. With another version of pydra, finished
scans may be lost, or broken ones may be taken for finished. For a new version, run ``tests/workflows`` and
``tests/cli/test_bids_app.py`` with it, repair what fails here, and add it to `TRIED`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import pickle
import secrets
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import cloudpickle
import pydra.engine.submitter  # noqa: F401  must come first: pydra.workers.base has a circular import
from fileformats.core import FileSet
from filelock import SoftFileLock, Timeout
from pydra.engine.hooks import TaskHooks
from pydra.engine.job import Job
from pydra.engine.result import load_result
from pydra.engine.submitter import Submitter
from pydra.workers.base import Worker

__all__ = [
    "TRIED", "Job", "Submitter", "TaskHooks", "Worker", "are_unchanged", "cache_root", "checksum",
    "discard_torn_hashes", "in_split", "job_lock", "lock_holder", "locks", "own_holder", "result_files", "stored_error",
    "stored_outputs", "stored_results", "use_work_folder", "warn_if_untried", "workflow_error",
]  # fmt: skip

TRIED = ("1.0a12",)
"""Versions of pydra with which the tests passed."""
HASH_BYTES = 16
"""Size of each hash that pydra keeps."""

log = logging.getLogger("nio_pydra")


def warn_if_untried() -> None:
    """Warn where the installed version of pydra is not in `TRIED`."""
    installed = importlib.metadata.version("pydra")
    if installed not in TRIED:
        log.warning(
            "pydra %s is installed, but nio_pydra was tested with %s only: if finished scans are computed again, or if "
            "the run stops, run pip install pydra==%s.",
            installed, ", ".join(TRIED), TRIED[-1],
        )  # fmt: skip


def use_work_folder(work_dir: Path) -> Path:
    """Make pydra keep its hashes in a work folder. Return the folder for its cache, beside them."""
    # By default pydra writes into the home folder, and asks a server for its newest version.
    os.environ["PYDRA_HASH_CACHE"] = str(work_dir / "hashes")
    os.environ.setdefault("NO_ET", "1")
    return work_dir / "pydra"


# Jobs and tasks


def checksum(task: Any) -> str:
    """Return the hash of a task's source and inputs, which names its folder in the cache."""
    return str(task._checksum)


def cache_root(job: Job[Any]) -> Path:
    """Return the cache folder of a job."""
    return Path(job.cache_root)


def in_split(job: Job[Any]) -> bool:
    """Return whether a job is a workflow that is one element of a split."""
    return job.is_async and job.state_index is not None


# Files of the cache


def stored_outputs(task: Any, cache: Path) -> Any | None:
    """Return the outputs of a task from the cache. None where it is not done."""
    result = load_result(checksum(task), [cache])
    return None if result is None or result.errored else result.outputs


def stored_error(folder: Path) -> str:
    """Return the traceback that pydra stored in a job's folder. Empty where there is none."""
    try:
        with (folder / "_error.pklz").open("rb") as stream:
            return "".join(cloudpickle.load(stream)["error message"])
    except (OSError, EOFError, pickle.UnpicklingError):
        return ""


def workflow_error(message: str) -> bool:
    """Return whether an error message comes from pydra, about the workflow around a failed job."""
    return message.startswith("Workflow job")


def stored_results(cache: Path) -> Iterator[Path]:
    """Return the result files in the cache. Each lies in the folder of its job."""
    return cache.glob("*/_result.pklz")


def result_files(stored: Path) -> list[Path] | None:
    """Return the files that a stored result names. None if it cannot be read, or does not claim success.

    None as well for the workflow around all scans: it would hide that a scan in it has lost its result.
    """
    try:
        with stored.open("rb") as stream:
            result = cloudpickle.load(stream)
        if result.errored or result.outputs is None or type(result.task).__name__ == "Split":
            return None
        values = [getattr(result.outputs, field.name) for field in attrs.fields(type(result.outputs))]
        return [path for value in values if isinstance(value, FileSet) for path in value.fspaths]
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, OSError):
        return None


def are_unchanged(stored: Path, files: Iterable[Path]) -> bool:
    """Return whether the files of a stored result are as it left them.

    They are written before the result that names them. So a file that is newer, empty or absent was changed afterwards.
    """
    try:
        written, found = stored.stat().st_mtime_ns, [path.stat() for path in files]
    except OSError:
        return False
    return all(file.st_size and file.st_mtime_ns <= written for file in found)


def job_lock(folder: Path) -> SoftFileLock:
    """Return pydra's lock of a job. It is held while files are written in the job's folder."""
    return SoftFileLock(folder.with_suffix(".lock"))


def lock_holder(lock: Path) -> tuple[int, str] | None:
    """Return the number and the host of the process that holds a lock. None if the lock is absent or does not tell."""
    with suppress(OSError, ValueError, IndexError):
        lines = lock.read_text().splitlines()
        return int(lines[0]), lines[1]
    return None


def own_holder(folder: Path) -> tuple[int, str]:
    """Return what a lock in a folder would tell of this process. filelock names containers by more than their host."""
    with SoftFileLock(folder / f".{os.getpid()}-{secrets.token_hex(6)}") as lock:
        holder = lock_holder(Path(lock.lock_file))
    return (os.getpid(), socket.gethostname()) if holder is None else holder


def locks(work_dir: Path) -> Iterator[Path]:
    """Return the lock files of pydra's jobs and of its hashes."""
    for folder in ("pydra", "hashes"):
        yield from (work_dir / folder).glob("*.lock")


def discard_torn_hashes(work_dir: Path) -> None:
    """Delete hashes that are incomplete, because the disk was full or a process was killed.

    pydra would use them. It takes all files with an empty hash for the same, so that one scan would get the results of
    another.
    """
    for path in (work_dir / "hashes").glob("*"):
        with suppress(FileNotFoundError, Timeout):  # another run deletes it, or writes it
            if path.suffix != ".lock" and path.stat().st_size != HASH_BYTES:
                with SoftFileLock(path.with_suffix(".lock")).acquire(timeout=0):
                    path.unlink(missing_ok=True)
