"""Table of the engines. It imports nothing slow, so that command lines start quickly."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from nio_pydra.errors import InputError

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Engine

__all__ = ["DEFAULT_ENGINE", "ENGINES", "LARGEST_SEED", "get_engine"]

LARGEST_SEED = 2**31 - 2
"""ANTs gets the seed plus one, because 0 means the time of day, as a signed 32-bit number."""

ENGINES = {
    "nio_m": "nio:NIO_M",
    "nio": "nio:NIO",
    "io": "nio:IO",
    "lapirn": "nio:LAPIRN",
    "affine": "affine:AFFINE",
    "syn": "syn:SYN",
    "greedy": "greedy:GREEDY",
    "niftyreg": "niftyreg:NIFTYREG",
    "convexadam": "convexadam:CONVEXADAM",
    "mpr": "mpr:MPR",
    "ulae": "ulae:ULAE",
}
"""Module in `nio_pydra.engines` and name of the engine in it."""
DEFAULT_ENGINE = next(iter(ENGINES))


def get_engine(name: str) -> Engine:
    """Return an engine by its name.

    Raises
    ------
    InputError
        If there is no engine of that name.
    """
    if name not in ENGINES:
        raise InputError(f"There is no engine {name}: choose one of {', '.join(ENGINES)}.")
    module, _, attribute = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(f"nio_pydra.engines.{module}"), attribute)
    return engine
