"""The fence around pydra: all that this package knows of pydra's insides, and of the files in its cache.

Defining tasks and workflows (`pydra.compose`) is what pydra promises; nothing here is. Another version of pydra may
therefore lose finished scans, or take broken ones for finished. When one comes out, run ``tests/workflows`` and
``tests/cli/test_bids_app.py`` with it, mend what fails here, and add it to `TRIED`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import cloudpickle
import pydra.engine.submitter  # noqa: F401  must come first: pydra.workers.base imports in a circle
from fileformats.core import FileSet
from filelock import SoftFileLock, Timeout
from pydra.engine.hooks import TaskHooks
from pydra.engine.job import Job
from pydra.engine.result import load_result
from pydra.engine.submitter import Submitter
from pydra.workers.base import Worker
from pydra.workers.slurm import SlurmWorker

__all__ = [
    "TRIED", "Job", "SlurmWorker", "Submitter", "TaskHooks", "Worker", "cache_root", "checksum", "discard_torn_hashes",
    "in_split", "is_usable", "job_folder", "job_lock", "locks", "stored_error", "stored_outputs", "stored_results",
    "use_work_folder", "warn_if_untried", "workflow_error",
]  # fmt: skip

TRIED = ("1.0a12",)
"""Versions of pydra that the tests passed with."""
HASH_BYTES = 16
"""Of the hashes that pydra keeps."""

log = logging.getLogger("nio_pydra")


def warn_if_untried() -> None:
    """Warn where the installed pydra is none of the versions that the tests passed with."""
    installed = importlib.metadata.version("pydra")
    if installed not in TRIED:
        log.warning(
            "pydra %s is installed, and nio_pydra was tried with %s only: if finished scans are computed again or the "
            "run stops, install that version (pip install pydra==%s).",
            installed, ", ".join(TRIED), TRIED[-1],
        )  # fmt: skip


def use_work_folder(work_dir: Path) -> Path:
    """Let pydra keep its hashes in a work folder, and return the folder for its cache beside them."""
    # It would otherwise write into the home folder, and ask a server for its newest version.
    os.environ["PYDRA_HASH_CACHE"] = str(work_dir / "hashes")
    os.environ.setdefault("NO_ET", "1")
    return work_dir / "pydra"


# Jobs and tasks


def checksum(task: Any) -> str:
    """Return the name of a task's folder in the cache: a hash of its source and its inputs."""
    return str(task._checksum)


def cache_root(job: Job[Any]) -> Path:
    """Return the cache that a job's folder lies in."""
    return Path(job.cache_root)


def job_folder(job: Job[Any]) -> Path:
    """Return the folder of a job in the cache."""
    return Path(job.cache_dir)


def in_split(job: Job[Any]) -> bool:
    """Return whether a job is a workflow that is one element of a split."""
    return job.is_async and job.state_index is not None


# Files of the cache


def stored_outputs(task: Any, cache: Path) -> Any | None:
    """Return the outputs of a task from the cache; None where it is not done."""
    result = load_result(checksum(task), [cache])
    return None if result is None or result.errored else result.outputs


def stored_error(folder: Path) -> str:
    """Return the traceback that pydra stored in a job's folder; empty where there is none."""
    try:
        with (folder / "_error.pklz").open("rb") as stream:
            return "".join(cloudpickle.load(stream)["error message"])
    except (OSError, EOFError, pickle.UnpicklingError):
        return ""


def workflow_error(message: str) -> bool:
    """Return whether the message of an error is pydra's own, about the workflow around the job that failed."""
    return message.startswith("Workflow job")


def stored_results(cache: Path) -> Iterator[Path]:
    """Give the file of every result in the cache; each lies in the folder of its job."""
    return cache.glob("*/_result.pklz")


def is_usable(stored: Path) -> bool:
    """Return whether a result can be used again: it can be read, claims success, and its files are as it left them."""
    try:
        with stored.open("rb") as stream:
            result = cloudpickle.load(stream)
        return not result.errored and result.outputs is not None and _is_lasting(stored, result)
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, OSError):
        return False


def _is_lasting(stored: Path, result: Any) -> bool:
    """Return whether a result that claims success can be used again.

    The workflow around all scans cannot: it would hide that one of its scans has lost its result. The files of all
    others were written before the result itself, so that whatever is newer, empty or gone was changed since.
    """
    if type(result.task).__name__ == "Split":
        return False
    values = [getattr(result.outputs, field.name) for field in attrs.fields(type(result.outputs))]
    files = [path.stat() for value in values if isinstance(value, FileSet) for path in value.fspaths]
    written = stored.stat().st_mtime_ns
    return all(file.st_size and file.st_mtime_ns <= written for file in files)


def job_lock(folder: Path) -> SoftFileLock:
    """Return pydra's own lock of a job, which is held as long as anything is written in its folder."""
    return SoftFileLock(folder.with_suffix(".lock"))


def locks(work_dir: Path) -> Iterator[Path]:
    """Give all locks of pydra's jobs, and of its cache of hashes."""
    for folder in ("pydra", "hashes"):
        yield from (work_dir / folder).glob("*.lock")


def discard_torn_hashes(work_dir: Path) -> None:
    """Delete hashes that were not written whole, for lack of room or of time.

    pydra would take them as they are. All files with an empty hash are the same to it: one scan would be given the
    results of another.
    """
    for path in (work_dir / "hashes").glob("*"):
        with suppress(FileNotFoundError, Timeout):  # another run was faster, or is at it
            if path.suffix != ".lock" and path.stat().st_size != HASH_BYTES:
                with SoftFileLock(path.with_suffix(".lock")).acquire(timeout=0):
                    path.unlink(missing_ok=True)
