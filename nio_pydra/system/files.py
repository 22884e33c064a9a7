"""Files that are either whole or absent, and digests of their contents."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
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
    "one_at_a_time",
    "read_json",
    "temporary_file",
    "write_changed",
    "write_text",
]

HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
PREFIX = ".tmp-"
NAME = re.compile(r"\.tmp-([0-9a-f]{8})-[0-9a-f]{12}(\.\w+)*")
"""Temporary names: the host and a random number."""
FOREIGN_SECONDS = 86_400.0
"""Age at which a temporary file of another host counts as left over, because its lock may be invisible here."""
_tidied: set[Path] = set()
"""Folders that this process has already cleared of leftovers."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file in the same folder, renamed to `path` on success and deleted on failure.

    The user's umask and the folder decide the permissions of the file. Half-written files of killed processes in the
    folder are deleted.

    Raises
    ------
    InputError
        If the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    opened = False
    try:
        with temporary_file(path.parent, suffix) as temporary:
            opened = True
            yield temporary
            temporary.replace(path)
    except OSError as error:
        if opened:
            raise
        raise InputError(
            f"{path} cannot be written ({error.strerror}): choose a folder that you may write to."
        ) from None


@contextmanager
def temporary_file(folder: Path, suffix: str = "") -> Iterator[Path]:
    """Make an empty file under a temporary name, deleted at the end if it still has that name.

    The folder is made if it is absent. Half-written files of killed processes in it are deleted first.

    Raises
    ------
    FullDiskError
        If the disk is full.
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
            with full_disk_named(folder):  # deleting the file makes room
                yield temporary
        finally:
            temporary.unlink(missing_ok=True)
            os.close(lock)


def write_text(text: str, path: Path) -> Path:
    """Write a text file whole or not at all, in UTF-8; return its path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode())
    return path


def write_changed(text: str, path: Path) -> Path:
    """Write a text file as :func:`write_text` does, unless it has this content already; return its path."""
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(text, path)
    return path


def discard_leftovers(folder: Path) -> None:
    """Delete half-written files of killed processes in a folder; those of living processes are kept."""
    for leftover in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or deleted meanwhile
            if not (found := NAME.fullmatch(leftover.name)) or not may_be_dead(leftover, found[1]):
                continue
            handle = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if locked(handle, leftover):
                    leftover.unlink()
            finally:
                os.close(handle)


@contextmanager
def one_at_a_time(lock: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Let other processes that use the same lock file wait. Where the file system has no locks, none waits.

    Parameters
    ----------
    lock : Path
        File that is made where it is absent, and stays.
    waiting : callable
        Called once if another process holds the lock.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def may_be_dead(path: Path, host: str) -> bool:
    """Return whether the process that made a temporary file or folder may have died, so that its lock decides.

    On some shared file systems a lock is invisible to other hosts. So a file of another host counts as in use for a
    day.
    """
    return host == HOST or time.time() - path.lstat().st_mtime > FOREIGN_SECONDS


def locked(handle: int, path: Path) -> bool:
    """Lock an open file until it is closed; return False if another process holds the lock or the path has changed.

    The kernel releases a lock when its process ends, however it ends. So a file without a lock is one of a dead
    process. Where the file system has no locks, every file counts as locked by another process.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


def _new_file(folder: Path, suffix: str) -> tuple[Path, int]:
    """Make a new file and lock it; return its path and the handle that holds the lock."""
    while True:
        path = folder / f"{PREFIX}{HOST}-{secrets.token_hex(6)}{suffix}"
        # The kernel reduces this mode by the umask, or by the folder's default access list.
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        with suppress(OSError):  # no locks on this file system: no other process can lock it either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists():
            return path, handle
        os.close(handle)  # another process deleted it as a leftover before it was locked


def read_json(path: Path, advice: str = "repair it") -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    path : Path
        JSON file.
    advice : str
        End of the error message: what to do about the file.

    Raises
    ------
    InputError
        If the file cannot be read or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows begin with a byte order mark
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"{path} is a link to a file that is absent: {advice}.") from None
        raise InputError(f"{path}: no such file.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {advice}.") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): {advice}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object in braces: {advice}.")
    return content


def contents_digest(*paths: Path | None) -> str:
    """Return twelve hexadecimal digits of a SHA-256 of the contents of files, in order; None has a digest of its own.

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
