"""Options that several commands share, and what their values must be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.engines.names import ENGINES, LARGEST_SEED
from nio_pydra.errors import InputError

if TYPE_CHECKING:
    from nio_pydra.engines.methods import Method

__all__ = ["add_engine_options", "method_of", "named_datasets", "named_path", "positive", "seed"]


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above zero")
    return number


def seed(text: str) -> int:
    """Parse a random seed: negative ones, and larger ones, would make ANTs take the clock or another seed."""
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text} is no seed: expected a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def named_path(text: str) -> tuple[str, Path]:
    """Parse NAME=PATH."""
    name, separator, path = text.partition("=")
    if not separator or not name.isalnum() or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH with a name of letters and digits")
    return name, Path(path)


def named_datasets(given: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Return the datasets of ``-d NAME=PATH`` by name.

    Raises
    ------
    InputError
        If a name is given twice, or stands for something else in BIDS URIs.
    """
    found: dict[str, Path] = {}
    for name, path in given:
        if name.lower() == "raw":
            raise InputError(f"-d {name}={path}: {name} stands for the dataset itself in BIDS URIs, give another name.")
        if twin := next((other for other in found if other.lower() == name.lower()), None):
            raise InputError(f"-d {name}={path}: {twin}={found[twin]} has that name already, give another one.")
        found[name] = path
    return found


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add --engine, --preset, --settings, --weights, --device, --precision and --random-seed."""
    group = parser.add_argument_group("registration")
    group.add_argument("--engine", choices=ENGINES, default="nio_m", help="(default: %(default)s)")
    group.add_argument("--preset", help="one of the engine's, which `nio engines` lists (default: its first)")
    group.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="TOML or JSON: a preset to start from, and the settings that differ",
    )
    group.add_argument("--weights", type=Path, help="network weights (default: those of the package)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    group.add_argument(
        "--precision", choices=("auto", "float32"), default="auto",
        help="auto lets the network compute in bfloat16 where that is faster (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--random-seed", type=seed, default=0, metavar="N", help="(default: %(default)s)")


def method_of(args: argparse.Namespace) -> Method:
    """Return the method that the options name.

    It is looked at in full, weights included: better now than after the first scan's affine.

    Raises
    ------
    InputError
        If there is no such method, or it cannot be used here.
    """
    from nio_pydra.engines.methods import choose_method, read_settings_file

    preset, changes = args.preset, None
    if args.settings is not None:
        preset, changes = read_settings_file(args.settings, preset)
    method = choose_method(args.engine, preset, weights=args.weights, changes=changes)
    method.fingerprint()
    return method
