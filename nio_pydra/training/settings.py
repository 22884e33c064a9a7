"""What decides a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nio_pydra.networks import LapIRNConfig
from nio_pydra.networks.lapirn import LEVELS
from nio_pydra.training.maps import ORIENTATION
from nio_pydra.training.synthesis import SynthesisSettings

__all__ = ["Stage", "TrainingSettings"]


@dataclass(frozen=True)
class Stage:
    """One part of the schedule.

    Attributes
    ----------
    level : int
        The level trained, 1 to 3; the loss is taken at its resolution.
    steps : int
        Pairs seen.
    learning_rate : float
        Adam's, falling to a twentieth along a cosine.
    crop : int
        Edge of the random crop in voxels of the level, a multiple of 4; 0 for whole images.
    joint : bool
        Train the levels below as well (whole images only).
    """

    level: int
    steps: int
    learning_rate: float = 1e-3
    crop: int = 0
    joint: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.level <= LEVELS:
            raise ValueError(f"level is {self.level}: expected 1 to {LEVELS}")
        if self.crop % 4 or (self.crop and (self.joint or self.level == 1)):
            raise ValueError("a crop is a multiple of 4, above level 1, with the levels below frozen")


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training run.

    Attributes
    ----------
    network : LapIRNConfig
        Unconditional.
    stages : tuple of Stage
        In order.
    smoothness : float
        lambda: the loss is (1 - lambda) LNCC + lambda diffusion, the latter in the authors' scale (`objective`).
    head_scale : float
        Factor on the last convolution of a level that was copied from the one below.
    validate_every, save_every : int
        Steps.
    held_out : int
        How many label maps, the last ones, are kept for validation.
    precision : {"bf16", "float32"}
        Of the convolutions.
    seed : int
        Decides weights, images and crops.
    synthesis : SynthesisSettings
        How images are made.
    training_data, licence : str
        For the metadata of the weights.
    """

    network: LapIRNConfig = field(default_factory=LapIRNConfig.standard)
    stages: tuple[Stage, ...] = (Stage(1, 1500), Stage(2, 1500, 5e-4, crop=48), Stage(3, 400, 2e-4, crop=64))
    smoothness: float = 0.4
    head_scale: float = 0.5
    validate_every: int = 250
    save_every: int = 50
    held_out: int = 3
    precision: str = "bf16"
    seed: int = 0
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    training_data: str = "images generated from label maps"
    licence: str = "unspecified"

    def __post_init__(self) -> None:
        if self.network.conditional or self.network.variant != "disp":
            raise ValueError("only the plain displacement network can be trained so far")

    def metadata(self) -> dict[str, Any]:
        """What the weights file says of them."""
        return {
            "orientation": ORIENTATION,
            "voxel_size_mm": 1.0,
            "intensity_scaling": "percentile",
            "lambda": self.smoothness,
            "training_data": self.training_data,
            "licence": self.licence,
        }
