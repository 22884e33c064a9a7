"""The engines by name. Nothing heavy is imported here, so that command lines are quick to say what they know."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from nio_pydra.errors import InputError

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Engine

__all__ = ["ENGINES", "LARGEST_SEED", "get_engine"]

LARGEST_SEED = 2**31 - 2
"""ANTs takes the seed plus one, as 0 means the clock to it, in 32 bits with a sign."""

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
}
"""Module of `nio_pydra.engines` and the engine's name in it. The first one is the default."""


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
