"""A method: an engine together with its settings."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nio_pydra.engines.contract import Engine
from nio_pydra.engines.names import get_engine
from nio_pydra.errors import InputError
from nio_pydra.system.settings import plain, read_table, with_changes

__all__ = ["Method", "choose_method", "parse_method", "read_settings_file"]


@dataclass(frozen=True)
class Method:
    """What registers, and how.

    Attributes
    ----------
    name : str
        Name of the engine.
    preset : str
        Preset that the settings began as; empty for settings made by hand.
    settings : dataclass instance
        One of the engine's kind.
    """

    name: str
    preset: str
    settings: Any

    @property
    def engine(self) -> Engine:
        """The engine itself."""
        return get_engine(self.name)

    def fingerprint(self) -> str:
        """Return what results depend on beside the code and the settings; see :meth:`Engine.fingerprint`."""
        return self.engine.fingerprint(self.settings)

    def record(self) -> dict[str, Any]:
        """Return JSON values that name the method in full."""
        return {"engine": self.name, "preset": self.preset or None, "settings": plain(self.settings)}


def choose_method(
    engine: str = "nio_m",
    preset: str | None = None,
    *,
    weights: Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Method:
    """Return a method by names, checked to be possible here.

    Parameters
    ----------
    engine : str
        One of `nio_pydra.engines.names.ENGINES`.
    preset : str, optional
        Default: the engine's first.
    weights : Path, optional
        Network weights in the place of the package's.
    changes : mapping, optional
        Settings that differ from the preset's, see :func:`nio_pydra.system.settings.with_changes`.

    Raises
    ------
    InputError
        If the engine, the preset or a setting does not exist, weights are given to an engine without a network, or
        the engine is not installed.
    """
    chosen = get_engine(engine)
    presets = chosen.presets
    preset = preset or next(iter(presets))
    if preset not in presets:
        raise InputError(f"The engine {engine} has no preset {preset}: choose one of {', '.join(presets)}.")
    if reason := chosen.available():
        raise InputError(f"The engine {engine} cannot be used here: {reason}")
    if weights is not None:
        if "weights" not in {field.name for field in fields(presets[preset])}:
            raise InputError(f"The engine {engine} uses no network: leave out --weights.")
        changes = {**(changes or {}), "weights": weights}
    try:
        settings = with_changes(presets[preset], changes or {})
    except ValueError as error:
        raise InputError(f"These settings cannot be used for {engine} ({preset}): {error}.") from None
    if (path := getattr(settings, "weights", None)) is not None:
        settings = replace(settings, weights=path.absolute())  # tasks run in folders of their own
    return Method(engine, preset, settings)


def read_settings_file(path: Path, preset: str | None = None) -> tuple[str | None, dict[str, Any]]:
    """Read a preset to start from and the settings that differ, from TOML or JSON.

    Parameters
    ----------
    path : Path
        Holds ``preset``, or not, and settings.
    preset : str, optional
        Chosen elsewhere; must not contradict the file.

    Returns
    -------
    preset : str or None
    changes : dict
        As :func:`choose_method` takes them.

    Raises
    ------
    InputError
        If the file cannot be read or contradicts `preset`.
    """
    changes = read_table(Path(path))
    own = changes.pop("preset", None)
    if own is not None and not isinstance(own, str):
        raise InputError(f"{path} (settings): preset is {own!r}, expected a name.")
    if own and preset and own != preset:
        raise InputError(f"{path} (settings) starts from the preset {own}, but --preset says {preset}: leave out one.")
    return own or preset, changes


def parse_method(text: str) -> Method:
    """Return the method that a short text names, as in a list of methods to compare.

    Parameters
    ----------
    text : str
        ``ENGINE[:PRESET][@WEIGHTS][?SETTING=VALUE[&SETTING=VALUE]]``, as ``syn:precise``,
        ``lapirn@mine.safetensors`` or ``nio_m:fast?network.objective.weight=0.2``. Settings are named from the outside
        in; values are those of TOML.

    Raises
    ------
    InputError
        As :func:`choose_method` does, and if the text has another form.
    """
    form = re.fullmatch(r"(\w+)(?::(\w+))?(?:@([^?]+))?(?:\?(.+))?", text.strip())
    if form is None:
        raise InputError(f"The method {text!r} cannot be read: expected ENGINE[:PRESET][@WEIGHTS][?SETTING=VALUE].")
    engine, preset, weights, settings = form.groups()
    try:
        changes = tomllib.loads("\n".join(settings.split("&"))) if settings else None
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"The settings of the method {text!r} cannot be read ({error}): expected SETTING=VALUE as in TOML, "
            "with text in quotes."
        ) from None
    return choose_method(engine, preset, weights=Path(weights) if weights else None, changes=changes)
