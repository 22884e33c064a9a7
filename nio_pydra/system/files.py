"""Files that are either whole or absent, and what tells them apart."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nio_pydra.errors import InputError
from nio_pydra.system.disk import full_disk_named

__all__ = [
    "HOST",
    "atomic_path",
    "contents_digest",
    "discard_leftovers",
    "locked",
    "may_be_dead",
    "read_json",
    "temporary_file",
]

HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
PREFIX = ".tmp-"
NAME = re.compile(r"\.tmp-([0-9a-f]{8})-[0-9a-f]{12}(\.\w+)*")
"""Temporary names: the host, and a number that nobody else draws."""
FOREIGN_SECONDS = 86_400.0
"""Age from which another host's leftover is one: its locks may be unknown here."""
_tidied: set[Path] = set()
"""Folders that this process has looked through for leftovers."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name in the same folder, renamed to `path` on success and deleted on failure.

    The file gets the permissions that the user's umask and the folder say. What killed processes left half-written in
    the folder is deleted.

    Raises
    ------
    InputError
        If the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    began = False
    try:
        with temporary_file(path.parent, suffix) as temporary:
            began = True
            yield temporary
            temporary.replace(path)
    except OSError as error:
        if began:
            raise
        raise InputError(
            f"{path} cannot be written ({error.strerror}): choose a folder that you may write to."
        ) from None


@contextmanager
def temporary_file(folder: Path, suffix: str = "") -> Iterator[Path]:
    """Make an empty file under a temporary name, deleted at the end if it still has that name.

    What killed processes left in the folder, which is made where it is absent, is deleted first.

    Raises
    ------
    FullDiskError
        If the disk is full, at the beginning or while the file is written.
    OSError
        If the folder cannot be made or written to.
    """
    with full_disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if folder.absolute() not in _tidied:
            discard_leftovers(folder)
            _tidied.add(folder.absolute())
        temporary, lock = _new_file(folder, suffix)
        try:
            with full_disk_named(folder):  # before the file is deleted, which makes room
                yield temporary
        finally:
            temporary.unlink(missing_ok=True)
            os.close(lock)


def discard_leftovers(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder; what living ones write is left alone."""
    for leftover in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if not (found := NAME.fullmatch(leftover.name)) or not may_be_dead(leftover, found[1]):
                continue
            handle = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if locked(handle, leftover):
                    leftover.unlink()
            finally:
                os.close(handle)


def may_be_dead(path: Path, host: str) -> bool:
    """Return whether a lock can tell if the owner of a temporary file or folder lives: not on another host.

    Some shared file systems keep locks to the host that took them. What another host made counts as in use for a day.
    """
    return host == HOST or time.time() - path.lstat().st_mtime > FOREIGN_SECONDS


def locked(handle: int, path: Path) -> bool:
    """Lock an open file until it is closed, if nobody else has it locked and its name still leads to it.

    The kernel gives a lock back when the process ends, however it ends. That tells the files of living processes from
    those of dead ones. A file system without such locks counts as locked by somebody else.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


def _new_file(folder: Path, suffix: str) -> tuple[Path, int]:
    """Make a new file and lock it; return its path, and the handle that keeps the lock until it is closed."""
    while True:
        path = folder / f"{PREFIX}{HOST}-{secrets.token_hex(6)}{suffix}"
        # The kernel takes the umask off this mode, or applies the folder's default access list.
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        with suppress(OSError):  # no such locks here: then nobody else gets one either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists():
            return path, handle
        os.close(handle)  # somebody took it for a leftover in the moment before it was locked


def read_json(path: Path, advice: str = "repair it") -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    path : pathlib.Path
    advice : str
        The end of the sentence where it cannot be read.

    Raises
    ------
    InputError
        If the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows put a mark at the beginning
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {advice}.") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): {advice}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object in braces: {advice}.")
    return content


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
