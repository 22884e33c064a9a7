"""Folders for temporary files, deleted with their process or by the next run."""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nio_pydra.errors import InputError
from nio_pydra.system.disk import full_disk_named
from nio_pydra.system.files import HOST, locked, may_be_dead

__all__ = ["discard_scratch", "private_folder", "scratch_folder"]

PREFIX = "nio-pydra-"
NAME = re.compile(r"\.?nio-pydra-([0-9a-f]{8})-[a-z0-9_]{8}")
"""Names of temporary folders: the host and the random part of `tempfile`."""
LOCK = ".lock"
_mine: set[Path] = set()
os.register_at_fork(after_in_child=_mine.clear)  # a forked process must not delete what its parent uses


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder, deleted at the end; leftovers of killed processes are deleted first.

    Parameters
    ----------
    parent : Path or None
        Folder for the temporary folder, which gets a hidden name; made if it is absent. None: the system's folder for
        temporary files (TMPDIR).

    Yields
    ------
    Path
        Absolute path of an empty folder that only this user can read.

    Raises
    ------
    InputError
        If the folder cannot be made, or its disk becomes full.
    """
    place = Path(tempfile.gettempdir() if parent is None else parent).absolute()
    try:
        with full_disk_named(place):
            made = [each for each in (place, *place.parents) if not each.exists()]
            place.mkdir(parents=True, exist_ok=True)
            prefix = PREFIX if parent is None else f".{PREFIX}"
            for other in place.glob(f"{prefix}*"):
                if found := NAME.fullmatch(other.name):
                    _discard_if_dead(other, found[1])
            folder, lock = _new_folder(place, prefix)
    except OSError as error:
        raise InputError(f"No temporary folder can be made in {place} ({error.strerror}).") from None
    _mine.add(folder)
    try:
        with full_disk_named(place):
            yield folder
    finally:
        if folder in _mine:
            _remove(folder)
        _mine.discard(folder)
        os.close(lock)
        for each in made:
            with suppress(OSError):
                each.rmdir()


def discard_scratch() -> None:
    """Delete all temporary folders of this process, which is about to end without other cleaning up."""
    for folder in list(_mine):
        _remove(folder)


def private_folder(name: str) -> Path:
    """Return a folder among the system's temporary files that is kept from run to run, for this user only.

    If another user has taken its name, a new folder is made and deleted at the end of the process.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
        return folder
    fresh = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, fresh, ignore_errors=True)
    return fresh


def _new_folder(place: Path, prefix: str) -> tuple[Path, int]:
    """Make a folder with a locked file in it; return its path and the handle that holds the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{HOST}-", dir=place))
        try:
            handle = os.open(folder / LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileNotFoundError:  # another process deleted it as a leftover
            continue
        with suppress(OSError):  # no locks on this file system: no other process can lock it either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if (folder / LOCK).exists():
            return folder, handle
        os.close(handle)


def _discard_if_dead(folder: Path, host: str) -> None:
    """Delete a temporary folder of this user if its process has ended."""
    with suppress(OSError):
        status = folder.lstat()
        if not may_be_dead(folder, host) or not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            folder.rmdir()  # its process was killed before it locked; fails unless the folder is empty
            return
        try:
            if locked(handle, folder / LOCK):
                _remove(folder)
        finally:
            os.close(handle)


def _remove(folder: Path) -> None:
    """Delete a folder, its lock last, so that a later run can finish what fails here."""
    with suppress(OSError):
        for entry in folder.iterdir():
            with suppress(OSError):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry.name != LOCK:
                    entry.unlink()
        if [entry.name for entry in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()
