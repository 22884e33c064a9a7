"""Paths that lead to the same place, so that no output replaces an input."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nio_pydra.errors import InputError

__all__ = ["refuse_same_file", "same_place"]


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
