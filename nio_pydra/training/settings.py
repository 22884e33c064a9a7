"""What decides a training run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from nio_pydra.engines.names import LARGEST_SEED
from nio_pydra.errors import InputError
from nio_pydra.networks import LapIRN, LapIRNConfig
from nio_pydra.networks.interface import NetworkConfig, architecture_class
from nio_pydra.networks.lapirn import LEVELS
from nio_pydra.system.files import write_text
from nio_pydra.training.maps import ORIENTATION
from nio_pydra.training.recipes import RECIPES
from nio_pydra.training.synthesis import SynthesisSettings

__all__ = ["Stage", "TrainingSettings", "default_settings", "read_settings"]


def _require_whole(**numbers: object) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int):
            raise ValueError(f"{name} is {value!r}: expected a whole number")


@dataclass(frozen=True)
class Stage:
    """One part of the schedule.

    Attributes
    ----------
    level : int
        The level trained, 1 to 3; the loss is taken at its resolution. Networks without levels are trained at 3.
    steps : int
        Pairs seen.
    learning_rate : float
        Adam's, falling to a twentieth along a cosine.
    crop : int
        Edge of the random crop in voxels of the level, a multiple of 4; 0 for whole images. Not for conditional
        networks, whose normalisation would see the crop here and the whole image later.
    joint : bool
        Train the levels below as well (whole images only).
    """

    level: int
    steps: int
    learning_rate: float = 1e-3
    crop: int = 0
    joint: bool = False

    def __post_init__(self) -> None:
        _require_whole(level=self.level, steps=self.steps, crop=self.crop)
        if not 1 <= self.level <= LEVELS:
            raise ValueError(f"level is {self.level}: expected 1 to {LEVELS}")
        if self.steps < 1 or not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"a stage has {self.steps} steps at rate {self.learning_rate}: expected positive numbers")
        if self.crop < 0 or self.crop % 4 or (self.crop and (self.joint or self.level == 1)):
            raise ValueError("a crop is a multiple of 4, above level 1, with the levels below frozen")


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training run.

    Attributes
    ----------
    architecture : {"lapirn", "ulae"}
        Of the network.
    network : LapIRNConfig or ULAEConfig
        Its shape. LapIRN is of the "disp" variant, all levels of one width; of a conditional network lambda is drawn
        anew, uniformly from [0, 1], at every step.
    stages : tuple of Stage
        In order.
    smoothness : float
        lambda: the loss is (1 - lambda) LNCC + lambda diffusion, the latter in the authors' scale (`objective`). A
        conditional network is validated with it.
    label_weight : float
        Of the overlap of labels, 1 - Dice, where the images have some (those made of label maps always do); 0 leaves
        that term out. lambda does not scale it.
    head_scale : float
        Factor on the last convolution of a level that was copied from the one below.
    validate_every, save_every : int
        Steps.
    held_out : int
        How many label maps or scans, the last ones, are kept for validation: 0, or at least 2 to make a pair.
    precision : {"auto", "float32"}
        Of the convolutions; "auto" takes bfloat16 where that is faster.
    seed : int
        Decides weights, images and crops.
    synthesis : SynthesisSettings
        How images are made of label maps. Of real scans only the pose is changed.
    training_data, licence : str
        For the metadata of the weights.
    """

    architecture: str = LapIRN.architecture
    network: NetworkConfig = field(default_factory=LapIRNConfig.standard)
    stages: tuple[Stage, ...] = (Stage(1, 1500), Stage(2, 1500, 5e-4, crop=48), Stage(3, 400, 2e-4, crop=64))
    smoothness: float = 0.4
    label_weight: float = 0.0
    head_scale: float = 0.5
    validate_every: int = 250
    save_every: int = 50
    held_out: int = 3
    precision: Literal["auto", "float32"] = "auto"
    seed: int = 0
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    training_data: str = "unspecified"
    licence: str = "unspecified"

    def __post_init__(self) -> None:
        if self.architecture not in RECIPES:
            raise ValueError(f"architecture is {self.architecture!r}: expected {' or '.join(RECIPES)}")
        expected = architecture_class(self.architecture).config_class
        if not isinstance(self.network, expected):
            raise ValueError(f"network is {self.network}: expected {expected.__name__} for {self.architecture}")
        if not self.stages:
            raise ValueError("there are no stages")
        RECIPES[self.architecture].check(self)
        _require_whole(
            validate_every=self.validate_every, save_every=self.save_every, held_out=self.held_out, seed=self.seed
        )
        if not 0 <= self.smoothness <= 1:
            raise ValueError(f"smoothness is {self.smoothness}: expected a number in [0, 1]")
        if not 0 <= self.label_weight < float("inf"):
            raise ValueError(f"label_weight is {self.label_weight}: expected 0 or more")
        if not 0 <= self.head_scale < float("inf"):
            raise ValueError(f"head_scale is {self.head_scale}: expected 0 or more")
        if min(self.validate_every, self.save_every) < 1:
            raise ValueError("validate_every and save_every are at least 1")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed is {self.seed}: expected 0 to {LARGEST_SEED}")
        if self.held_out < 0 or self.held_out == 1:
            raise ValueError(f"held_out is {self.held_out}: expected 0, or at least 2 brains to make a pair of")
        if self.precision not in ("auto", "float32"):
            raise ValueError(f"precision is {self.precision!r}: expected auto or float32")

    def metadata(self) -> dict[str, Any]:
        """What the weights file says of them."""
        return {
            "orientation": ORIENTATION,
            "voxel_size_mm": 1.0,
            "intensity_scaling": "percentile",
            "lambda": None if self.network.conditional else self.smoothness,
            "label_weight": self.label_weight,
            "training_data": self.training_data,
            "licence": self.licence,
        }

    def write(self, path: Path) -> None:
        """Write all of it as JSON, for :func:`read_settings`."""
        write_text(json.dumps(asdict(self), indent=1) + "\n", path)


def default_settings(architecture: str = LapIRN.architecture, **changes: Any) -> TrainingSettings:
    """Settings to train networks of an architecture with.

    Parameters
    ----------
    architecture : {"lapirn", "ulae"}
        Decides what is not given.
    **changes
        Settings that differ from the defaults.

    Raises
    ------
    ValueError
        If a setting cannot be.
    """
    if architecture not in RECIPES:
        raise ValueError(f"architecture is {architecture!r}: expected {' or '.join(RECIPES)}")
    return TrainingSettings(**{"architecture": architecture, **RECIPES[architecture].defaults(), **changes})


def read_settings(path: Path, architecture: str | None = None) -> TrainingSettings:
    """Read settings from a JSON file; what it leaves out keeps its default.

    Parameters
    ----------
    path : Path
        As :meth:`TrainingSettings.write` wrote it, or part of that.
    architecture : str, optional
        The only one wanted; where the file names none, its default depends on this one.

    Raises
    ------
    InputError
        If the file cannot be read, holds a setting that does not exist or cannot be, or is for another architecture.
    """
    try:
        stored = json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: no settings can be read from it ({error.strerror}).") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): expected settings as a run stores in settings.json.") from None
    try:
        values = dict(_checked(stored, TrainingSettings))
        # Runs from before there were several architectures name none.
        named = values.pop("architecture", architecture or LapIRN.architecture)
        if architecture not in (None, named):
            raise ValueError(f"it is for the architecture {named!r}, not for {architecture!r}")
        defaults = default_settings(named)
        for name in ("network", "synthesis"):
            if name in values:
                default = getattr(defaults, name)
                values[name] = replace(default, **_checked(values[name], type(default)))
        if "stages" in values:
            values["stages"] = tuple(Stage(**_checked(stage, Stage)) for stage in values["stages"])
        return replace(defaults, **values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be used: {error}.") from None


def _checked(values: Any, kind: type) -> Mapping[str, Any]:
    """Those of a dataclass, lists turned into tuples; a misspelt name must not pass for a default."""
    if not isinstance(values, dict):
        raise ValueError(f"found {values!r} where the settings of {kind.__name__} belong")
    known = [entry.name for entry in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
