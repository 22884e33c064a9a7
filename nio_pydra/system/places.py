"""Whether two paths are one place, so that nothing that is read is written over."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nio_pydra.errors import InputError

__all__ = ["refuse_same_file", "same_place"]


def same_place(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file or folder, through links as well."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return one.resolve() == other.resolve()


def refuse_same_file(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise `InputError` where a file to be written is one of those that are read."""
    read = [path for path in inputs if path is not None]
    for output in outputs:
        for path in read:
            if same_place(output, path):
                raise InputError(f"{output} would be overwritten, but {path} is an input: choose another output.")
