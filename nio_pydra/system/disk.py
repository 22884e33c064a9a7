"""Detection of full disks, and the message about them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nio_pydra.errors import FullDiskError, InputError

__all__ = ["full_disk", "full_disk_named"]

LEAST_FREE_BYTES = 2**18
"""With less free space than this, a full disk counts as the cause of a failed write."""
CODES = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Replace any error by a `FullDiskError` that names a folder, if the folder's disk is full.

    It must surround the write alone, because deleting files afterwards makes room and hides the cause.

    Parameters
    ----------
    folder : Path
        Folder that the body writes to.

    Raises
    ------
    FullDiskError
        If the body fails and the disk is full.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        sentence = full_disk([folder], error)
        if sentence is None:
            raise
        raise FullDiskError(sentence) from None


def full_disk(folders: Sequence[Path], error: BaseException | None = None) -> str | None:
    """Return a message for the user if a disk is full, else None.

    Parameters
    ----------
    folders : sequence of Path
        Folders that were written to.
    error : BaseException, optional
        Error that ended the writing. It can show what the disk does not: a used-up quota, a disk that has room again
        by now, or a full disk of temporary files.
    """
    if isinstance(error, OSError) and error.errno is not None and error.errno not in CODES:
        return None  # another cause
    reported, several = _reports_full_disk(error), len(folders) != 1
    temporary = Path(tempfile.gettempdir())
    if reported:
        folders = [*folders, temporary]
        if isinstance(error, OSError) and isinstance(error.filename, str):
            folders = [Path(error.filename).parent, *folders]
    full = next((folder for folder in folders if _is_full(folder)), None)
    if full is None and not reported:
        return None
    if full is None and several:
        return f"The disk with one of these folders was full: {', '.join(map(str, folders))}: make room there."
    full = (full or folders[0]).absolute()
    while full.name.lstrip(".").startswith("nio-pydra-"):  # a temporary folder of ours, which the user does not know
        full = full.parent
    other = "set TMPDIR to another folder" if full == temporary.absolute() else "choose another folder"
    return f"The disk with the folder {full} is full: make room there, or {other}."


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < LEAST_FREE_BYTES
    except OSError:
        return False


def _reports_full_disk(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes has the system's code or text for a full disk or quota."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in CODES:
            return True
        if any(os.strerror(code) in str(error) for code in CODES):  # libraries often keep only the text
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
