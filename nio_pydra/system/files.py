"""Files that are either whole or absent, and what tells them apart."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nio_pydra.errors import InputError

__all__ = ["atomic_path", "contents_digest"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name in the same folder, renamed to `path` on success and deleted on failure.

    Raises
    ------
    InputError
        If the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=suffix, dir=path.parent)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}): choose a folder that you may write to."
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files that only their owner may read
        temporary.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{path} cannot be written ({error.strerror}): make room, or choose another folder.") from None
    finally:
        temporary.unlink(missing_ok=True)


def contents_digest(*paths: Path | None) -> str:
    """Twelve hexadecimal digits (of a SHA-256) that stand for the contents of files, in order; None is one of its own.

    Raises
    ------
    InputError
        If a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            content = b"" if path is None else hashlib.sha256(path.read_bytes()).digest()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}).") from None
        digest.update(content + b";")
    return digest.hexdigest()[:12]
