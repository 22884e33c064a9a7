"""The engines by name: what a command line must know of them before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nio_pydra.errors import InputError

__all__ = ["ENGINES", "LARGEST_SEED", "Engine", "preset_name"]

LARGEST_SEED = 2**31 - 2
"""ANTs takes the seed plus one, as 0 means the clock to it, in 32 bits with a sign."""


@dataclass(frozen=True)
class Engine:
    """What is known of an engine without importing it.

    Attributes
    ----------
    module : str
        Of `nio_pydra.engines`.
    presets : tuple of str
        Keys of the module's ``PRESETS``, the default first.
    network : bool
        Whether it takes network weights.
    """

    module: str
    presets: tuple[str, ...]
    network: bool = False


#: The default first. A test keeps this and the modules alike.
ENGINES = {
    "nio_m": Engine("nio", ("paper", "precise", "fast", "draft"), network=True),
    "nio": Engine("nio", ("paper", "draft"), network=True),
    "io": Engine("nio", ("paper", "draft"), network=True),
    "lapirn": Engine("nio", ("paper",), network=True),
    "affine": Engine("affine", ("default",)),
    "syn": Engine("syn", ("fast", "precise")),
}


def preset_name(engine: str, preset: str | None = None, weights: Path | None = None) -> str:
    """Return the preset's name, the engine's default for None.

    Raises
    ------
    InputError
        If there is no such engine or preset, or weights are given to an engine without a network.
    """
    if engine not in ENGINES:
        raise InputError(f"There is no engine {engine}: choose one of {', '.join(ENGINES)}.")
    presets = ENGINES[engine].presets
    if preset is not None and preset not in presets:
        raise InputError(f"The engine {engine} has no preset {preset}: choose one of {', '.join(presets)}.")
    if weights is not None and not ENGINES[engine].network:
        raise InputError(f"The engine {engine} uses no network: leave out --weights.")
    return preset or presets[0]
