"""Neural Instance Optimization: optimisation of a network's weights on one pair.

The network's structure and training keep the field plausible, so optimising its weights achieves more than optimising
the field itself. NIO_m goes from coarse to fine: first it optimises level 1 of the network, then levels 1 and 2, then
all three. In the paper the field is upsampled, so that the loss always compares the images at full resolution. At the
level's own resolution it costs less. Plain NIO is the same loop with iterations at the last level only, and LapIRN the
same without iterations.

Source: Mok et al., "Deformable Medical Image Registration Under Distribution Shifts with Neural Instance
Optimization" (MLMI 2023), Section 2.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nio_pydra.errors import InputError
from nio_pydra.networks import Network
from nio_pydra.networks.lapirn import LEVELS, LapIRN, image_pyramid
from nio_pydra.optimize.augmentation import RandomAffines, moved_by
from nio_pydra.optimize.bspline import bspline
from nio_pydra.optimize.estimate import Estimate
from nio_pydra.optimize.problem import Objective, Problem
from nio_pydra.optimize.progress import Progress, finite_field
from nio_pydra.optimize.resources import autocast, place

__all__ = ["NIOSettings", "optimize_network"]


@dataclass(frozen=True)
class NIOSettings:
    """Schedule and objective.

    Attributes
    ----------
    iterations : tuple of int
        Number of steps at levels 1, 2 and 3. ``(100, 60, 30)`` is NIO_m, ``(0, 0, 50)`` NIO, ``(0, 0, 0)`` LapIRN.
        Levels without steps predict with their trained weights.
    levels : int
        Number of levels that predict the field. With fewer than three, the last one's field is upsampled. Level 3
        works at full resolution and costs more than the others together.
    learning_rate : float
        Learning rate of Adam.
    compared : {"full", "level"}
        Resolution at which the loss compares the images: the full one, as in the paper, or that of the level, with
        smaller windows (:meth:`Objective.coarser`).
    objective : Objective
        Similarity window and regularisation weight.
    augmentation : float
        Strength of the affine augmentation (:class:`nio_pydra.optimize.augmentation.RandomAffines`): at every step the
        network registers the pair as another random affine shows it. 0: it always sees the pair as it is. The field
        that is returned is that of the pair as it is.
    """

    iterations: tuple[int, int, int] = (100, 60, 30)
    levels: int = LEVELS
    learning_rate: float = 1e-4
    compared: Literal["full", "level"] = "full"
    objective: Objective = field(default_factory=Objective)
    augmentation: float = 0.0

    def __post_init__(self) -> None:
        if self.compared not in ("full", "level"):
            raise ValueError(f"compared is {self.compared!r}: expected 'full' or 'level'")
        if len(self.iterations) != LEVELS or min(self.iterations) < 0:
            raise ValueError(f"iterations is {self.iterations}: expected {LEVELS} numbers, none negative")
        if not 1 <= self.levels <= LEVELS:
            raise ValueError(f"levels is {self.levels}: expected a number from 1 to {LEVELS}")
        if any(self.iterations[self.levels :]):
            raise ValueError(f"iterations is {self.iterations}: expected no steps above level {self.levels} (levels)")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: expected a positive number")
        if not 0 <= self.augmentation < 0.5:
            raise ValueError(f"augmentation is {self.augmentation}: expected 0 or more, below 0.5")

    def require(self, network: Network | None) -> LapIRN:
        """Return the network, or raise `InputError` if it is not one that can be optimised."""
        if isinstance(network, LapIRN):
            return network
        found = "no network" if network is None else f"weights of {network.architecture}"
        raise InputError(f"Neural Instance Optimization needs LapIRN, but found {found}: use weights of LapIRN.")

    def refine(self, estimate: Estimate) -> Estimate:
        """Optimise the network on the pair; its field replaces the current one."""
        field = optimize_network(
            self.require(estimate.network),
            estimate.problem,
            self,
            condition=estimate.condition,
            precision=estimate.precision,
            progress=estimate.progress,
            smoothings=estimate.smoothings,
        )
        return estimate.with_field(field)


def optimize_network(
    network: LapIRN,
    pair: Problem,
    settings: NIOSettings,
    *,
    condition: float | None = None,
    precision: torch.dtype = torch.float32,
    progress: bool | None = None,
    smoothings: int = 0,
) -> Tensor:
    """Register a pair by optimising a copy of the network.

    Parameters
    ----------
    network : LapIRN
        Pre-trained network; it is not changed.
    pair : Problem
        Pair on the device of the computation, every axis a multiple of 8.
    settings : NIOSettings
        Schedule and objective.
    condition : float, optional
        Regularisation weight that is passed to a conditional network
        (:func:`nio_pydra.networks.checkpoints.condition_for`). Default: that of the objective.
    precision : torch.dtype
        Type of the convolutions. With ``torch.bfloat16`` they run under autocast; the rest stays float32.
    progress : bool or None
        See :class:`Progress`.
    smoothings : int
        Average poolings of the B-spline model (:func:`nio_pydra.optimize.bspline.bspline`), through which every field
        goes before it is compared. The levels hand on their fields as they are.

    Returns
    -------
    Tensor
        Unit displacement field ``(1, 3, D, H, W)`` float32 at full resolution, without gradient. With the "diff"
        variant it is the integrated field.

    Raises
    ------
    ComputationError
        If the optimisation diverges.
    """
    device = pair.fixed.device
    network = place(copy.deepcopy(network), device)
    pyramids = image_pyramid(pair.moving), image_pyramid(pair.fixed)
    affines = RandomAffines(settings.augmentation, pair.fixed.shape[2:], device) if settings.augmentation else None
    if condition is None:
        condition = settings.objective.weight

    def loss(levels: int, factor: int, compared: Problem) -> Tensor:
        shown = pyramids
        if affines is not None:
            seen = moved_by(affines.next(), pair)
            shown, compared = (image_pyramid(seen.moving), image_pyramid(seen.fixed)), seen.coarser(factor)
        field = predict(levels, *shown, compared.fixed.shape[2:])
        return compared.loss(field, settings.objective.coarser(factor))

    def predict(levels: int, moving: list[Tensor], fixed: list[Tensor], shape: torch.Size) -> Tensor:
        with autocast(device, precision):
            outputs = network.on_pyramid(moving, fixed, levels=levels, condition=condition)
        return bspline(outputs[-1].field, shape, smoothings)

    with Progress(sum(settings.iterations), progress) as report:
        for level, steps in enumerate(settings.iterations, start=1):
            factor = 2 ** (LEVELS - level) if settings.compared == "level" else 1
            optimizer = torch.optim.Adam(network.levels[:level].parameters(), lr=settings.learning_rate)
            report.minimise(partial(loss, level, factor, pair.coarser(factor)), optimizer, steps, level=level)
    with torch.no_grad():
        return finite_field(predict(settings.levels, *pyramids, pair.fixed.shape[2:]).contiguous())
