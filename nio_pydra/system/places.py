"""Places to write to: that they can be, and that no output replaces an input."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nio_pydra.errors import InputError
from nio_pydra.system.files import temporary_file

__all__ = ["refuse_same_file", "require_writable", "same_place"]


def same_place(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file or folder, also through links."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return one.resolve() == other.resolve()


def refuse_same_file(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise `InputError` if an output is also an input."""
    given = [path for path in inputs if path is not None]
    for output in outputs:
        for path in given:
            if same_place(output, path):
                raise InputError(f"{output} would be overwritten, but {path} is an input: choose another output.")


def require_writable(folder: Path, role: str) -> None:
    """Make a folder. Raise `InputError` if it cannot be made or written to."""
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        what = "is a file" if folder.exists() else "is a broken link"
        raise InputError(f"The {role} {folder} cannot be written (it {what}): choose another place.")
    try:
        with temporary_file(folder) as probe:
            probe.write_text("?")
    except OSError as error:
        raise InputError(f"The {role} {folder} cannot be written ({error.strerror}): choose another place.") from None
