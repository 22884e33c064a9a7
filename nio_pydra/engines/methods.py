"""Methods: an engine together with its settings."""

from __future__ import annotations

import json
import logging
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from nio_pydra.engines.contract import Engine
from nio_pydra.engines.names import DEFAULT_ENGINE, get_engine
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.files import contents_digest
from nio_pydra.system.settings import plain, read_table, with_changes

__all__ = [
    "Method",
    "choose_method",
    "is_adapted_to",
    "parse_method",
    "read_settings_file",
    "split_method",
    "split_methods",
    "usual_preset",
    "warn_if_adapted_to_others",
]

log = logging.getLogger("nio_pydra")


@dataclass(frozen=True)
class Method:
    """An engine and its settings.

    Attributes
    ----------
    name : str
        Name of the engine.
    preset : str
        Preset from which the settings come; empty for settings made by hand.
    settings : dataclass instance
        Settings of the engine's type.
    """

    name: str
    preset: str
    settings: Any

    @property
    def engine(self) -> Engine:
        """Engine of that name."""
        return get_engine(self.name)

    def fingerprint(self) -> str:
        """Return the version of programs and weights (:meth:`Engine.fingerprint`)."""
        return self.engine.fingerprint(self.settings)

    def made(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record is of this engine with these settings and weights.

        A setting that the record does not know had its default: what a new setting does by default was done before.
        """
        used = record.get("weights")
        return self.has_settings(record) and (used is None or self.has_weights(used["sha256"]))

    def has_settings(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record is of this engine with these settings, whatever its weights."""
        wanted = json.loads(json.dumps(self.record()))
        try:
            settings = plain(with_changes(type(self.settings)(), record.get("settings", {})))
        except ValueError:  # settings that are no more
            return False
        return settings == wanted["settings"] and all(record.get(name) == wanted[name] for name in ("engine", "preset"))

    def has_weights(self, sha256: str | None) -> bool:
        """Return whether weights with this digest are those of this method; None: there were none.

        Raises
        ------
        InputError
            If the weights of this method cannot be read.
        """
        kind, _, digest = self.fingerprint().partition("-")
        if kind != "weights":  # versions of programs, which settings do not decide
            return sha256 is None
        return sha256 is not None and sha256[:16] == digest

    def record(self) -> dict[str, Any]:
        """Return engine, preset and all settings as JSON values, without the folder of weights."""
        settings = plain(self.settings)
        if settings.get("weights"):
            settings["weights"] = Path(settings["weights"]).name
        return {"engine": self.name, "preset": self.preset or None, "settings": settings}


def choose_method(
    engine: str = DEFAULT_ENGINE,
    preset: str | None = None,
    *,
    weights: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    require_installed: bool = True,
) -> Method:
    """Return a method by its names, and check that it can be used.

    Parameters
    ----------
    engine : str
        One of `nio_pydra.engines.names.ENGINES`.
    preset : str, optional
        Default: the engine's first.
    weights : Path, optional
        Network weights instead of those of the package.
    changes : mapping, optional
        Settings that differ from the preset (:func:`nio_pydra.system.settings.with_changes`).
    require_installed : bool
        Whether the engine's programs must be installed. Results can be read without them.

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
    if require_installed and (reason := chosen.available()):
        raise InputError(f"The engine {engine} cannot be used here: {reason}")
    if weights is not None:
        if "weights" not in {field.name for field in fields(presets[preset])}:
            raise InputError(f"The engine {engine} uses no network: leave out the weights.")
        changes = {**(changes or {}), "weights": weights}
    try:
        settings = with_changes(presets[preset], changes or {})
    except ValueError as error:
        raise InputError(f"These settings cannot be used for {engine} ({preset}): {error}.") from None
    if (path := getattr(settings, "weights", None)) is not None:
        settings = replace(settings, weights=path.absolute())  # tasks run in other folders
    return Method(engine, preset, settings)


def usual_preset(engine: str, profile: Profile) -> str | None:
    """Return the preset of an engine that is used for images of a profile. None: the engine's first."""
    return profile.preset if profile.preset in get_engine(engine).presets else None


def read_settings_file(path: Path, preset: str | None = None) -> tuple[str | None, dict[str, Any]]:
    """Read a preset, and the settings that differ from it, from TOML or JSON.

    Parameters
    ----------
    path : Path
        File with settings and optionally ``preset``.
    preset : str, optional
        Preset chosen by the caller, which must not contradict the file.

    Returns
    -------
    preset : str or None
        Preset of the file or the caller.
    changes : dict
        Settings for :func:`choose_method`.

    Raises
    ------
    InputError
        If the file cannot be read or contradicts `preset`.
    """
    changes = read_table(Path(path))
    named = changes.pop("preset", None)
    if named is not None and not isinstance(named, str):
        raise InputError(f"{path} (settings): preset is {named!r}, expected a name.")
    if named and preset and named != preset:
        raise InputError(f"{path} (settings) starts from the preset {named}, but --preset is {preset}: leave out one.")
    return named or preset, changes


class MethodText(NamedTuple):
    """Parts of a short text that names a method; None where it says nothing."""

    engine: str
    preset: str | None
    weights: str | None
    settings: str | None


def split_methods(text: str) -> list[str]:
    """Split a list of methods at the commas that do not stand in the list of a setting; each is named once.

    Examples
    --------
    >>> split_methods("greedy, nio_m?network.iterations=[5, 0, 0]")
    ['greedy', 'nio_m?network.iterations=[5, 0, 0]']
    """
    return list(dict.fromkeys(name.strip() for name in re.split(r",(?![^\[]*\])", text) if name.strip()))


def split_method(text: str) -> MethodText:
    """Take apart a text of the form that :func:`parse_method` reads, without looking anything up.

    Raises
    ------
    InputError
        If the text has another form.
    """
    form = re.fullmatch(r"(\w+)(?::(\w+))?(?:@([^?]+))?(?:\?(.+))?", text.strip())
    if form is None:
        raise InputError(f"The method {text!r} cannot be read: expected ENGINE[:PRESET][@WEIGHTS][?SETTING=VALUE].")
    return MethodText(*form.groups())


def parse_method(text: str, *, profile: Profile = BRAIN, require_installed: bool = True) -> Method:
    """Return the method that a short text names, for example in a list of methods to compare.

    Parameters
    ----------
    text : str
        ``ENGINE[:PRESET][@WEIGHTS][?SETTING=VALUE[&SETTING=VALUE]]``, for example ``syn:precise``,
        ``lapirn@mine.safetensors`` or ``nio_m:fast?network.objective.weight=0.2``. Settings are written as in
        TOML.
    profile : Profile
        What is registered, which decides the preset where the text names none (:func:`usual_preset`).
    require_installed : bool
        See :func:`choose_method`.

    Raises
    ------
    InputError
        As :func:`choose_method`, and if the text has another form.
    """
    engine, preset, weights, settings = split_method(text)
    try:
        changes = tomllib.loads("\n".join(settings.split("&"))) if settings else None
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"The settings of the method {text!r} cannot be read ({error}): expected SETTING=VALUE as in TOML, "
            "with text in quotes."
        ) from None
    return choose_method(
        engine, preset or usual_preset(engine, profile),
        weights=Path(weights) if weights else None, changes=changes, require_installed=require_installed,
    )  # fmt: skip


def is_adapted_to(adapted: Mapping[str, Any], image: Path) -> bool:
    """Return whether weights were adapted to an image.

    Parameters
    ----------
    adapted : mapping
        What :func:`nio_pydra.networks.checkpoints.adaptation_of` says of the weights.
    image : Path
        Image whose contents are compared.
    """
    return bool(adapted.get("atlas", {}).get("digest") == contents_digest(image))


def warn_if_adapted_to_others(method: Method, images: Iterable[Path]) -> None:
    """Warn if the weights of a method were adapted to other images than these, or its preset wants adapted ones.

    Parameters
    ----------
    method : Method
    images : iterable of Path
        Fixed images.
    """
    from nio_pydra.networks.checkpoints import adaptation_of  # imports torch

    weights = getattr(method.settings, "weights", None)
    adapted = None if weights is None else adaptation_of(weights)
    if adapted is None:
        if method.preset == "adapted":
            log.warning(
                "The preset adapted is made for adapted weights, and these are not: overlap will be lower than that of "
                "the preset fast. Adapt them with `nio adapt`, or with `nio-pydra --adapt`."
            )
        return
    for image in images:
        if not is_adapted_to(adapted, image):
            log.warning(
                "%s was adapted to %s, another image than %s: overlap may be lower than that of other weights.",
                weights, adapted["atlas"]["name"], image,
            )  # fmt: skip
