"""Options that several commands share, and checks of their values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.engines.names import DEFAULT_ENGINE, ENGINES, LARGEST_SEED, get_engine
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN

if TYPE_CHECKING:
    from nio_pydra.engines.methods import Method

__all__ = [
    "add_engine_options", "add_jacobian_option", "add_runtime_options", "memory", "method_of", "named_datasets",
    "named_path", "positive", "seed",
]  # fmt: skip


QUICK_PRESETS = ("draft", "fast")
"""Presets that --sloppy chooses, the first that the engine has."""


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above zero")
    return number


def seed(text: str) -> int:
    """Parse a random seed. With a negative or larger one, ANTs would use the clock or another seed."""
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not a seed: expected a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def memory(text: str) -> float:
    """Parse an amount of memory with or without a unit (K, M, G, T), default M; return MiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory: expected one as 16000 (MB) or 16G")
    return float(match[1]) * {"K": 2**-10, "M": 1, "G": 2**10, "T": 2**20}[match[2].upper() or "M"]


def named_path(text: str) -> tuple[str, Path]:
    """Parse NAME=PATH, or PATH, whose name are then the letters and digits of its last folder."""
    name, separator, path = text.partition("=")
    if separator and name.isalnum() and path:
        return name, Path(path)
    if separator and "/" not in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH with a name of letters and digits")
    name = "".join(letter for letter in Path(text).absolute().name if letter.isalnum())
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} gives no name of letters and digits: give NAME=PATH")
    return name, Path(text)


def named_datasets(given: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Return the datasets of ``-d NAME=PATH`` or ``-d PATH`` by name.

    Raises
    ------
    InputError
        If a name is given twice, or is the name of the dataset itself in BIDS URIs.
    """
    found: dict[str, Path] = {}
    for name, path in given:
        if name.lower() == "raw":
            raise InputError(
                f"-d {name}={path}: {name} stands for the dataset itself in BIDS URIs, choose another name (NAME=PATH)."
            )
        if twin := next((other for other in found if other.lower() == name.lower()), None):
            raise InputError(
                f"-d {name}={path}: {twin}={found[twin]} has that name already, choose another one (NAME=PATH)."
            )
        found[name] = path
    return found


def add_engine_options(parser: argparse.ArgumentParser, usual_preset: str = "the first") -> None:
    """Add --engine, --preset, --settings and --weights, and what `add_runtime_options` adds."""
    group = parser.add_argument_group("registration")
    group.add_argument("--engine", choices=ENGINES, default=DEFAULT_ENGINE, help="(default: %(default)s)")
    group.add_argument("--preset", help=f"preset of the engine, as `nio engines` lists them (default: {usual_preset})")
    group.add_argument("--settings", type=Path, metavar="FILE", help="TOML or JSON: a preset, and settings that differ")
    group.add_argument("--weights", type=Path, help="network weights (default: those of the package)")
    add_runtime_options(parser)


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Add --device, --precision and --random-seed, and set the profile."""
    parser.set_defaults(profile=BRAIN)
    group = parser.add_argument_group("computation")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    group.add_argument(
        "--precision", choices=("auto", "float32"), default="auto",
        help="auto: the network computes in bfloat16 where that is faster (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--random-seed", type=seed, default=0, metavar="N", help="(default: %(default)s)")


def add_jacobian_option(parser: argparse.ArgumentParser) -> None:
    """Add --output-jacobian."""
    parser.add_argument(
        "--output-jacobian", action="store_true",
        help="write the volume change from the fixed image to the moving one, affine included: multiplied by it, a "
        "warped tissue map keeps the amount of tissue",
    )  # fmt: skip


def method_of(args: argparse.Namespace) -> Method:
    """Return the method that the options name.

    Weights are checked as well, so that an error comes before the first scan.

    Raises
    ------
    InputError
        If the method does not exist, or cannot be used here.
    """
    from nio_pydra.engines.methods import choose_method, read_settings_file, usual_preset

    preset, changes = args.preset, None
    if getattr(args, "sloppy", False):
        if preset or args.settings:
            raise InputError("--sloppy chooses a preset: leave out --preset and --settings, or --sloppy.")
        preset = next((name for name in QUICK_PRESETS if name in get_engine(args.engine).presets), None)
    if args.settings is not None:
        preset, changes = read_settings_file(args.settings, preset)
    try:
        preset = preset or usual_preset(args.engine, args.profile)
        method = choose_method(args.engine, preset, weights=args.weights, changes=changes)
    except InputError as error:
        raise InputError(f"{args.settings} (settings): {error}" if args.settings else str(error)) from None
    method.fingerprint()
    return method
