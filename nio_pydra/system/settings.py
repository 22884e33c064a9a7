"""Settings from files, which replace some values of a frozen dataclass."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from nio_pydra.errors import InputError

__all__ = ["flat", "plain", "read_table", "with_changes"]

T = TypeVar("T")


def flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by their names, joined by dots.

    Examples
    --------
    >>> dict(flat({"a": 1, "b": {"c": None, "d": [2]}}))
    {'a': 1, 'b.c': None, 'b.d': [2]}
    """
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def read_table(path: Path) -> dict[str, Any]:
    """Read a file of settings: TOML if its name ends in .toml, otherwise JSON.

    Raises
    ------
    InputError
        If the file cannot be read or holds no table.
    """
    kind = "TOML" if path.suffix == ".toml" else "JSON"
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if kind == "TOML" else json.loads(text)
    except OSError as error:
        raise InputError(f"{path} (settings) cannot be read ({error.strerror}): give another file.") from None
    except ValueError as error:
        raise InputError(
            f"{path} (settings) is not {kind} ({error}): correct it; a TOML file must be named .toml."
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path} (settings) holds a {type(content).__name__}: expected settings by name.")
    return content


def with_changes(settings: T, changes: Mapping[str, Any], name: str = "") -> T:
    """Return settings with some values replaced, also in nested dataclasses.

    Parameters
    ----------
    settings : dataclass instance
        Settings to start from.
    changes : mapping
        New values by field name, in the types of JSON and TOML: lists for tuples, text for paths, tables for
        dataclasses. False removes an optional part.
    name : str
        Name of the settings in messages.

    Raises
    ------
    ValueError
        If a field does not exist, or its value has the wrong type or is refused by the dataclass.
    """
    hints = get_type_hints(type(settings))
    known = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    prefix = f"{name}." if name else ""
    if unknown := sorted(set(changes) - set(known)):
        choices = f"choose one of {', '.join(known)}" if known else "there is nothing to set"
        raise ValueError(f"there is no setting {prefix}{unknown[0]}: {choices}")
    values = {
        key: _converted(value, hints[key], getattr(settings, key), prefix + key) for key, value in changes.items()
    }
    try:
        return replace(settings, **values)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def plain(settings: object) -> dict[str, Any]:
    """Return a dataclass as JSON values."""

    def converted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: converted(each) for key, each in value.items()}
        if isinstance(value, tuple | list):
            return [converted(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    return dict(converted(asdict(settings)))  # type: ignore[call-overload]


def _converted(value: Any, hint: Any, old: Any, name: str) -> Any:
    """Convert a value from a file to the type of a field."""
    if get_origin(hint) in (Union, UnionType):
        choices = get_args(hint)
        if NoneType in choices and (value is None or (value is False and bool not in choices)):
            return None
        (hint,) = (choice for choice in choices if choice is not NoneType)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is {value!r}: expected a table of settings")
        return with_changes(hint() if old is None else old, value, name)  # type: ignore[operator]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} is {value!r}: expected {' or '.join(map(str, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} is {value!r}: expected a list")
        return tuple(_converted(entry, get_args(hint)[0], None, name) for entry in value)
    return _scalar(value, hint, name)


def _scalar(value: Any, hint: type, name: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and is_number and math.isfinite(value):
        return float(value)
    if (hint is not int or is_number) and hint is not float and hint is not Path and isinstance(value, hint):
        return value
    expected = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}[hint]
    raise ValueError(f"{name} is {value!r}: expected {expected}")
