"""Options that several commands share, and what their values must be."""

from __future__ import annotations

import argparse
from pathlib import Path

from nio_pydra.errors import InputError

__all__ = ["ENGINES", "add_engine_options", "checked_preset", "positive"]

NETWORK_ENGINES = ("nio_m", "nio", "io", "lapirn")
ENGINES = ("nio_m", "nio", "io", "lapirn", "affine", "syn")
"""Those of `nio_pydra.engines.registration`, which is slow to import; a test keeps the two alike."""


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above zero")
    return number


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add --engine, --preset, --weights, --device, --precision and --random-seed."""
    group = parser.add_argument_group("registration")
    group.add_argument("--engine", choices=ENGINES, default="nio_m", help="(default: %(default)s)")
    group.add_argument("--preset", help="paper or draft; for syn fast or precise (default: paper, fast)")
    group.add_argument("--weights", type=Path, help="network weights (default: those of the package)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    group.add_argument(
        "--precision", choices=("auto", "float32"), default="auto",
        help="auto lets the network compute in bfloat16 where that is faster (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--random-seed", type=int, default=0, metavar="N", help="(default: %(default)s)")


def checked_preset(engine: str, preset: str | None, weights: Path | None) -> str:
    """Return the preset's name, after looking at it and the weights: better now than after the first scan's affine.

    Raises
    ------
    InputError
        If the engine has no such preset, or the weights cannot be used.
    """
    from nio_pydra.engines.registration import default_preset, preset_names

    names = preset_names(engine)
    if preset is not None and preset not in names:
        raise InputError(f"The engine {engine} has no preset {preset}: it has {', '.join(names)}.")
    if engine in NETWORK_ENGINES:
        from nio_pydra.networks.checkpoints import load_network

        load_network(weights)
    elif weights is not None:
        raise InputError(f"The engine {engine} uses no network: leave out --weights.")
    return preset or default_preset(engine)
