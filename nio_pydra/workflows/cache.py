"""Care of pydra's cache: what an interrupted or failed run left, and why a job failed."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import cloudpickle

__all__ = ["discard_unfinished", "failure_reason", "stored_error"]


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
