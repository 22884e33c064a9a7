"""Disks that are full: found out, and said in one sentence."""

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
"""With less room than this, what failed to write failed for lack of it."""
CODES = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn any error into a `FullDiskError` that names a folder, if the cause is that the folder's disk is full.

    It must stand where the error arises, before anything is deleted that makes room again.

    Parameters
    ----------
    folder : Path
        Where the body writes.

    Raises
    ------
    FullDiskError
        In place of the error, where the disk is full.
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
    """Return the sentence that a disk is full, or None where none is.

    Parameters
    ----------
    folders : sequence of Path
        Where something was written.
    error : BaseException, optional
        What that ended with. It may tell of a quota, or of a disk that has room again by now, or be about temporary
        files.
    """
    if isinstance(error, OSError) and error.errno is not None and error.errno not in CODES:
        return None  # it says itself what it was
    tells_so, given = _tells_so(error), len(folders)
    temporary = Path(tempfile.gettempdir())
    if tells_so:
        folders = [*folders, temporary]
        if isinstance(error, OSError) and isinstance(error.filename, str):
            folders = [Path(error.filename).parent, *folders]
    full = next((folder for folder in folders if _is_full(folder)), None)
    if full is None and not tells_so:
        return None
    if full is None and given != 1:
        return f"The disk with one of these folders was full: {', '.join(map(str, folders))}: make room there."
    full = (full or folders[0]).absolute()
    while full.name.lstrip(".").startswith("nio-pydra-"):  # a temporary folder of ours, which nobody knows
        full = full.parent
    other = "set TMPDIR to another folder" if full == temporary.absolute() else "choose another folder"
    return f"The disk with the folder {full} is full: make room there, or {other}."


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < LEAST_FREE_BYTES
    except OSError:
        return False


def _tells_so(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, has the system's code or text for a full disk or a quota used up."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in CODES:
            return True
        if any(os.strerror(code) in str(error) for code in CODES):  # libraries often pass on the text alone
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
