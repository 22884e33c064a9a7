"""Options of a run in a file: written for every run, and read by --config-file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from nio_pydra.errors import InputError
from nio_pydra.system.files import write_text
from nio_pydra.system.settings import read_table

__all__ = ["with_config_file", "write_config_file"]

NOT_IN_FILE = frozenset(("bids_dir", "out_dir", "level", "profile", "config_file"))
"""What only the command line says."""
TOGETHER = (
    frozenset(("output_spaces", "atlas", "atlas_name", "atlas_labels", "atlas_mask")),
    frozenset(("preset", "settings", "sloppy")),
    frozenset(("skull_stripped", "skull_strip_t1w")),
)
"""Options of which none is taken from the file where the command line names one."""


def with_config_file(
    parser: argparse.ArgumentParser, arguments: Sequence[str], options: argparse.Namespace
) -> argparse.Namespace:
    """Return the options of a command line, and those of its --config-file that it does not name itself.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Parser of the command line.
    arguments : sequence of str
        Command line.
    options : argparse.Namespace
        What the parser made of it.

    Raises
    ------
    InputError
        If the file cannot be read, names an option that does not exist, or has a value that it cannot have.
    """
    if options.config_file is None:
        return options
    # Defaults are set only where a value is absent. So what is still None was not on the command line.
    given = vars(parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(vars(options)))))
    named = {name for name, value in given.items() if value is not None}
    for group in TOGETHER:
        if named & group:
            named |= group
    if given["worker"] not in (None, "slurm"):
        named.add("slurm_args")
    known = {name.replace("_", "-"): name for name in given if name not in NOT_IN_FILE}
    words: list[str] = []
    for key, value in read_table(options.config_file).items():
        name = known.get(key.replace("_", "-"))
        if name is None:
            raise InputError(
                f"{options.config_file} (settings) names {key}, which is no option of nio-pydra: it knows "
                f"{', '.join(known)}."
            )
        if name not in named:
            words += _words(f"--{name.replace('_', '-')}", value)

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{options.config_file} (settings): {message}; correct it.")

    # The command line was parsed before without an error.
    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args([*arguments, *words])


def write_config_file(options: argparse.Namespace, path: Path, command: str) -> None:
    """Write the options of a run as TOML, for --config-file.

    Parameters
    ----------
    options : argparse.Namespace
        Options of the run.
    path : Path
        File to write.
    command : str
        Command line, for a comment.
    """
    lines = [f"# {json.dumps(command, ensure_ascii=False)}"]
    for name, value in vars(options).items():
        if name not in NOT_IN_FILE and value not in (None, False, 0, "", []):
            # Strings, numbers and lists look alike in JSON and TOML.
            lines.append(f"{name.replace('_', '-')} = {json.dumps(_plain(value), ensure_ascii=False)}")
    write_text("\n".join(lines) + "\n", path)


def _words(option: str, value: Any) -> list[str]:
    """Return a value of the file as words of a command line."""
    if isinstance(value, bool):
        return [option] if value else []
    if option == "--verbose" and isinstance(value, int):
        return [option] * value
    return [f"{option}={each}" for each in (value if isinstance(value, list) else [value])]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, tuple):  # a derivative dataset
        return f"{value[0]}={value[1].absolute()}"
    return str(value.absolute()) if isinstance(value, Path) else value
