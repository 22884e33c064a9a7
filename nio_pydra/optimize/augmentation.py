"""Affine augmentation: every step of an optimisation sees the pair through another small affine.

The fixed image, the moving image and the region that is compared are resampled by the same random affine, so the pair
stays a pair and the field that aligns it is the same, expressed in moved coordinates. What is optimised must then fit
many samplings of the pair instead of one. Source: the NIO paper (Section 3), after Siebert et al. 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nio_pydra.optimize.problem import Objective, Problem
from nio_pydra.spatial.unit_grid import identity_grid, warp

__all__ = ["RandomAffines", "loss_through", "moved_by"]


class RandomAffines:
    """Small random affines as unit displacements: the identity plus `strength` times N(0, 1) in each of 12 numbers.

    Parameters
    ----------
    strength : float
        Standard deviation, in units of half the grid. The paper's is 0.035.
    shape : sequence of int
        ``(D, H, W)`` of the grid.
    device : torch.device
        Device of the displacements. The numbers are drawn on the CPU, so they are the same everywhere.
    """

    def __init__(self, strength: float, shape: Sequence[int], device: torch.device) -> None:
        self._strength = strength
        self._grid = identity_grid(tuple(shape), device=device)
        self._random = torch.Generator().manual_seed(torch.initial_seed())

    def next(self) -> Tensor:
        """Return the displacement ``(1, 3, D, H, W)`` of the next affine."""
        drawn = self._strength * torch.randn(3, 4, generator=self._random).to(self._grid.device)
        displacement = self._grid @ drawn[:, :3].T + drawn[:, 3]
        return displacement.permute(0, 4, 1, 2, 3).contiguous()


def moved_by(shift: Tensor, pair: Problem) -> Problem:
    """Return a pair whose images and weights are all resampled through one displacement ``(1, 3, D, H, W)``."""

    def moved(image: Tensor | None) -> Tensor | None:
        return None if image is None else warp(image, shift)

    return Problem(
        warp(pair.fixed, shift), warp(pair.moving, shift), moved(pair.fixed_weights), moved(pair.moving_weights)
    )


def loss_through(shift: Tensor, pair: Problem, field: Tensor, objective: Objective) -> Tensor:
    """Return the objective of a field on a pair whose fixed side is resampled through a displacement.

    The similarity compares the fixed image and the warped moving one where the displacement takes each voxel of the
    grid. The penalties are those of the field itself.

    Parameters
    ----------
    shift : Tensor
        ``(1, 3, D, H, W)``.
    pair : Problem
        The pair as it is.
    field : Tensor
        Unit field ``(1, 3, D, H, W)`` on the grid of the pair.
    objective : Objective
        Weights and window.
    """
    weights = None if pair.fixed_weights is None else warp(pair.fixed_weights, shift)
    seen = Problem(warp(pair.fixed, shift), pair.moving, weights, pair.moving_weights)
    return seen.combined(seen.similarity(shift + warp(field, shift), objective.window), field, objective)
