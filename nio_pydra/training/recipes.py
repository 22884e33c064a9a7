"""How networks of each architecture learn: what a stage trains, what it predicts, and what that is compared by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nio_pydra.errors import InputError
from nio_pydra.losses import lncc
from nio_pydra.networks.interface import Network
from nio_pydra.networks.lapirn import LEVELS, LapIRN, LapIRNConfig, image_pyramid
from nio_pydra.networks.ulae import ULAE, ULAEConfig
from nio_pydra.spatial.unit_grid import identity_grid, upsample, voxel_scale, warp
from nio_pydra.training.pairs import ImagePair

if TYPE_CHECKING:
    from nio_pydra.training.settings import Stage, TrainingSettings

__all__ = ["RECIPES", "CoarseToFine", "EndToEnd", "Prediction", "Recipe", "inherit"]

DRAWS = 50  # of a crop, until one holds enough of the brain
WHOLE = (slice(None),) * 5
ULAE_WINDOWS = (11, 9, 7)  # of the similarity, the next one weighing half as much as the one before


@dataclass(frozen=True)
class Prediction:
    """What a network predicts of a pair at a stage's resolution, on the whole image or on a part of it.

    Attributes
    ----------
    moving, fixed : Tensor
        The whole images, ``(1, 1, D, H, W)``.
    field : Tensor
        Unit field ``(1, 3, d, h, w)`` of the part, in units of the whole image.
    box : tuple of slice
        The part, as an index of the images.
    """

    moving: Tensor
    fixed: Tensor
    field: Tensor
    box: tuple[slice, ...] = WHOLE

    @property
    def target(self) -> Tensor:
        """The part of the fixed image."""
        return self.fixed[self.box]

    @property
    def strain_field(self) -> Tensor:
        """The same field in units of the part, so that its strain is that of the whole."""
        if self.box is WHOLE:
            return self.field
        whole, part = (voxel_scale(x.shape[2:], device=self.field.device) for x in (self.fixed, self.target))
        return self.field * (whole / part)

    def carry(self, volume: Tensor) -> Tensor:
        """A volume of the moving image's grid ``(1, C, D, H, W)``, brought to the part."""
        if self.box is WHOLE:
            return warp(volume, self.field)
        depth, height, width = self.fixed.shape[2:]
        grid = identity_grid((depth, height, width), device=self.field.device)
        positions = grid[:, self.box[2], self.box[3], self.box[4]] + self.field.permute(0, 2, 3, 4, 1)
        return functional.grid_sample(volume, positions, padding_mode="border", align_corners=True)


class Recipe(ABC):
    """How networks of one architecture learn. What is the same for all is the loop's business."""

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Settings that differ from those of other architectures: ``network``, ``stages``, ..."""

    @abstractmethod
    def check(self, settings: TrainingSettings) -> None:
        """Refuse settings that the architecture cannot be trained with.

        Raises
        ------
        ValueError
            With the reason.
        """

    def check_start(self, settings: TrainingSettings, trained: int) -> None:  # noqa: B027 -- no levels, no limits
        """Refuse stages that need more than the `trained` levels that the initial weights bring along."""

    def begin(self, network: Any, stage: Stage, trained: int, settings: TrainingSettings) -> None:  # noqa: B027
        """Change weights before a stage's first step."""

    def choose_weights(self, network: Any, stage: Stage) -> None:
        """Let only those weights learn that the stage trains."""
        network.requires_grad_(True)

    def completed(self, network: Any, trained: int, settings: TrainingSettings) -> tuple[Network, dict[str, Any]]:
        """A network to use, made of one whose first `trained` levels have learned, and what its metadata adds."""
        return network, {}

    @abstractmethod
    def predict(
        self, network: Any, pair: ImagePair, stage: Stage, condition: float, rng: np.random.Generator
    ) -> Prediction:
        """Predict what the stage's loss is taken of."""

    @abstractmethod
    def similarity(self, target: Tensor, warped: Tensor, level: int) -> Tensor:
        """Compare two images ``(1, 1, d, h, w)``: the scalar that training lowers."""

    @abstractmethod
    def whole_field(self, network: Any, moving: Tensor, fixed: Tensor, level: int, condition: float) -> Tensor:
        """The unit field of the first levels, for validation, at the images' resolution or a coarser one."""


class CoarseToFine(Recipe):
    """LapIRN: each stage trains one level on top of finished ones, with the loss at that level's own resolution.

    A level starts as a copy of the one below it: all levels do the same work on images of another size, so little is
    left to learn. Above the first, a stage may work on random crops, for which the levels below run once on the whole
    image without gradients.
    """

    def defaults(self) -> dict[str, Any]:
        """See :class:`Recipe`."""
        return {"network": LapIRNConfig.standard()}

    def check(self, settings: TrainingSettings) -> None:
        """See :class:`Recipe`."""
        network: LapIRNConfig = settings.network  # type: ignore[assignment]
        if network.variant != "disp":
            raise ValueError("only networks that predict displacements can be trained so far")
        if set(network.head_channels) != {network.channels}:
            raise ValueError(
                f"head_channels is {network.head_channels}: expected {network.channels}, which is channels, "
                "for every level, as a level starts as a copy of the one below"
            )
        if network.conditional and any(stage.crop for stage in settings.stages):
            raise ValueError("conditional networks are trained on whole images: expected stages with crop 0")

    def check_start(self, settings: TrainingSettings, trained: int) -> None:
        """See :class:`Recipe`."""
        for number, stage in enumerate(settings.stages, start=1):
            if stage.level > trained + 1:
                raise InputError(
                    f"Stage {number} trains level {stage.level}, but level {trained + 1} below it was never trained: "
                    "put a stage of it before, or give --weights that have it."
                )
            trained = max(trained, stage.level)

    def begin(self, network: LapIRN, stage: Stage, trained: int, settings: TrainingSettings) -> None:
        """See :class:`Recipe`."""
        if stage.level == trained + 1 and trained > 0:
            inherit(network, stage.level, settings.head_scale)

    def choose_weights(self, network: LapIRN, stage: Stage) -> None:
        """See :class:`Recipe`."""
        for i, level in enumerate(network.levels, start=1):
            level.requires_grad_(i == stage.level or (stage.joint and i < stage.level))

    def completed(self, network: LapIRN, trained: int, settings: TrainingSettings) -> tuple[Network, dict[str, Any]]:
        """See :class:`Recipe`."""
        whole = LapIRN(network.config)
        whole.load_state_dict(network.state_dict())
        for level in range(trained + 1, LEVELS + 1):
            inherit(whole, level, settings.head_scale)
        return whole, {"trained_levels": trained}

    def predict(
        self, network: LapIRN, pair: ImagePair, stage: Stage, condition: float, rng: np.random.Generator
    ) -> Prediction:
        """See :class:`Recipe`."""
        top = stage.level - 1
        moving, fixed = (image_pyramid(image, max(2, stage.level)) for image in (pair.moving, pair.fixed))
        if not stage.crop:
            field = network.on_pyramid(moving, fixed, levels=stage.level, condition=condition)[-1].field
            return Prediction(moving[top], fixed[top], field)
        with torch.no_grad():
            below = network.on_pyramid(moving, fixed, levels=top, condition=condition)[-1]
            carried = upsample(below.parameters)
            moved = warp(moving[top], carried)
            embedding = network.embedding(below, top)
        box, half = _draw_crop(fixed[top], stage.crop, rng)
        network_input = torch.cat([moved, fixed[top], carried], dim=1)[box]
        residual, _ = network.levels[top](network_input, embedding[half], network.code(condition, fixed[top]))
        return Prediction(moving[top], fixed[top], carried[box] + residual, box)

    def similarity(self, target: Tensor, warped: Tensor, level: int) -> Tensor:
        """LNCC in a pyramid of windows: 3, 5/3 or 7/5/3."""
        similarity = warped.new_zeros(())
        for i in range(level):
            if i:
                warped, target = (functional.avg_pool3d(x, 3, 2, 1, count_include_pad=False) for x in (warped, target))
            # Weights that add up to 1, so that lambda weighs the same at every level.
            weight = 2**-i / (2 - 2 ** (1 - level))
            similarity = similarity + weight * lncc(target, warped, window=2 * (level - i) + 1)
        return similarity

    def whole_field(self, network: LapIRN, moving: Tensor, fixed: Tensor, level: int, condition: float) -> Tensor:
        """See :class:`Recipe`."""
        pyramids = (image_pyramid(image, max(2, level)) for image in (moving, fixed))
        return network.on_pyramid(*pyramids, levels=level, condition=condition)[-1].field


class EndToEnd(Recipe):
    """ULAE-net: all weights at once, on whole images at full resolution.

    With the default smoothness the loss is half of the paper's, LNCC in windows of 11, 9 and 7 voxels weighing 1, 1/2
    and 1/4, plus diffusion weighing 1.
    """

    def defaults(self) -> dict[str, Any]:
        """See :class:`Recipe`."""
        from nio_pydra.training.settings import Stage

        return {"network": ULAEConfig(), "stages": (Stage(LEVELS, 20_000, 1e-4, joint=True),), "smoothness": 0.125}

    def check(self, settings: TrainingSettings) -> None:
        """See :class:`Recipe`."""
        if any(stage.level != LEVELS or stage.crop or not stage.joint for stage in settings.stages):
            raise ValueError(
                f"networks of the architecture {settings.architecture} are trained as a whole: expected stages of "
                f"level {LEVELS}, joint, with crop 0"
            )

    def predict(
        self, network: ULAE, pair: ImagePair, stage: Stage, condition: float, rng: np.random.Generator
    ) -> Prediction:
        """See :class:`Recipe`."""
        return Prediction(pair.moving, pair.fixed, network.predict(pair.moving, pair.fixed, condition=condition))

    def similarity(self, target: Tensor, warped: Tensor, level: int) -> Tensor:
        """LNCC in several windows, at the images' own resolution."""
        weights = [2.0**-i for i in range(len(ULAE_WINDOWS))]
        terms = (w * lncc(target, warped, window) for w, window in zip(weights, ULAE_WINDOWS, strict=True))
        return sum(terms, warped.new_zeros(())) / sum(weights)

    def whole_field(self, network: ULAE, moving: Tensor, fixed: Tensor, level: int, condition: float) -> Tensor:
        """See :class:`Recipe`."""
        return network.predict(moving, fixed, condition=condition)


#: By the name of the architecture.
RECIPES: dict[str, Recipe] = {LapIRN.architecture: CoarseToFine(), ULAE.architecture: EndToEnd()}


def inherit(network: LapIRN, level: int, head_scale: float) -> None:
    """Start a level (2 or 3) as a copy of the one below, its residual scaled."""
    state = network.levels[level - 2].state_dict()
    own = network.levels[level - 1].state_dict()
    for name, values in state.items():
        if values.shape == own[name].shape:
            own[name].copy_(values)
        else:  # the first convolution of level 1 knows the two images only
            own[name].zero_()
            own[name][:, : values.shape[1]] = values
    own["head.2.weight"].mul_(head_scale)


def _draw_crop(volume: Tensor, edge: int, rng: np.random.Generator) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """A random box that holds some of the brain, and the same box at half resolution."""
    brain = volume[0, 0] > 0
    for _ in range(DRAWS):
        starts = [2 * int(rng.integers(0, max(0, n - edge) // 2 + 1)) for n in brain.shape]
        box = tuple(slice(s, min(s + edge, n)) for s, n in zip(starts, brain.shape, strict=True))
        if brain[box].float().mean() > 0.2:
            break
    every = (slice(None), slice(None))
    return (*every, *box), (*every, *(slice(b.start // 2, b.stop // 2) for b in box))
