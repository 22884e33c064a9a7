"""One pair in the network's space, and the objective of all optimisers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from nio_pydra.losses import FixedStatistics, diffusion, lncc, volume_change
from nio_pydra.spatial.unit_grid import warp

__all__ = ["Objective", "Problem", "block_means"]


@dataclass(frozen=True)
class Objective:
    """The loss of Mok et al. 2023, Eq. 3: ``(1 - weight) * LNCC + weight * diffusion``, and a penalty of volume change.

    The diffusion term is that of the displacement in voxels, as in the equation. The authors' training code uses about
    twice the displacement, so the same lambda weighs four times as much there.

    Attributes
    ----------
    weight : float
        Regularisation weight in [0, 1], lambda in the paper.
    window : int
        Edge of the LNCC windows in voxels, odd.
    volume_weight : float
        Weight of :func:`nio_pydra.losses.volume_change`, which is not part of the paper's loss. 0: it is left out.
    """

    weight: float = 0.4
    window: int = 7
    volume_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}: expected a number in [0, 1]")
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"window is {self.window}: expected an odd number of at least 3")
        if not self.volume_weight >= 0:
            raise ValueError(f"volume_weight is {self.volume_weight}: expected 0 or more")

    def coarser(self, factor: int) -> Objective:
        """Return the objective for images of 1 / `factor` of the resolution.

        Windows cover about the same part of the object, but at least 5 voxels along each axis where they did before.
        """
        return replace(self, window=max(min(5, self.window), 2 * (self.window // (2 * factor)) + 1))


@dataclass(frozen=True)
class Problem:
    """A pair in the network's space that a displacement field is to align.

    Attributes
    ----------
    fixed, moving : Tensor
        ``(1, 1, D, H, W)`` float32, scaled as the network expects.
    fixed_weights, moving_weights : Tensor or None
        Weight of every voxel in the similarity, same shape. The field warps the moving weights, without a gradient. A
        lesion has moving weight 0.
    """

    fixed: Tensor
    moving: Tensor
    fixed_weights: Tensor | None = None
    moving_weights: Tensor | None = None

    @cached_property
    def _statistics(self) -> dict[int, FixedStatistics]:
        return {}

    def coarser(self, factor: int) -> Problem:
        """Return the pair at 1 / `factor` of the resolution.

        A voxel is the mean of a block of voxels (:func:`block_means`), and has the smallest of their weights.
        """
        if factor == 1:
            return self

        def smallest(weights: Tensor | None) -> Tensor | None:
            return None if weights is None else -functional.max_pool3d(-weights, factor, ceil_mode=True)

        weights = smallest(self.fixed_weights), smallest(self.moving_weights)
        return Problem(block_means(self.fixed, factor), block_means(self.moving, factor), *weights)

    def with_moving(self, moving: Tensor, moving_weights: Tensor | None = None) -> Problem:
        """Return the pair of the same fixed image and another moving one; what is known of the fixed one is shared."""
        other = replace(self, moving=moving, moving_weights=moving_weights)
        other.__dict__["_statistics"] = self._statistics
        return other

    def loss(self, field: Tensor, objective: Objective) -> Tensor:
        """Return the objective of a unit field ``(1, 3, D, H, W)`` at the resolution of the pair."""
        return self.combined(self.similarity(field, objective.window), field, objective)

    @staticmethod
    def combined(similarity: Tensor, field: Tensor, objective: Objective) -> Tensor:
        """Return the objective of a field whose similarity is known."""
        loss = (1 - objective.weight) * similarity + objective.weight * diffusion(field)
        if objective.volume_weight > 0:
            loss = loss + objective.volume_weight * volume_change(field)
        return loss

    def similarity(self, field: Tensor, window: int = 7) -> Tensor:
        """Return the negative mean LNCC of the fixed and the warped moving image."""
        warped = warp(self.moving, field)
        if self.moving_weights is not None:
            with torch.no_grad():
                weights = warp(self.moving_weights, field.detach())
                if self.fixed_weights is not None:
                    weights = weights * self.fixed_weights
            return lncc(self.fixed, warped, window, weights)
        if window not in self._statistics:
            self._statistics[window] = FixedStatistics.of(self.fixed, window, self.fixed_weights)
        return lncc(self._statistics[window], warped)


def block_means(volumes: Tensor, factor: int) -> Tensor:
    """Return the means of blocks of ``factor**3`` voxels; at the end of an axis there can be fewer.

    Parameters
    ----------
    volumes : Tensor
        ``(N, C, D, H, W)``.
    factor : int
        Edge of the blocks in voxels.
    """
    if factor == 1:
        return volumes
    return functional.avg_pool3d(volumes, factor, ceil_mode=True, count_include_pad=False)
