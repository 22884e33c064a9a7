"""Instance optimisation of the displacement field itself: the baseline that NIO improves on.

Adam optimises a control field of half the resolution, which is smoothed by repeated average pooling and added to the
network's prediction. A few steps on coarser images can come first, which cost a fraction of those at full resolution.
Source, without these: Siebert et al., "Fast 3D registration with accurate optimisation and little learning for
Learn2Reg 2021", as described in the NIO paper (Section 3, baselines).

The diffeomorphic form hardly folds. On coarser images it optimises a stationary velocity, whose integral is the
displacement (scaling and squaring, as in LapIRN). At full resolution, where every squaring costs about as much as the
similarity, it composes the integral with a small displacement instead, as greedy methods do. After a few steps this
displacement becomes a part of the field, and another one starts from zero.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nio_pydra.optimize.augmentation import RandomAffines, loss_through
from nio_pydra.optimize.estimate import Estimate
from nio_pydra.optimize.problem import Objective, Problem, block_means
from nio_pydra.optimize.progress import Progress, finite_field
from nio_pydra.spatial.unit_grid import compose, integrate, upsample, voxel_scale
from nio_pydra.spatial.windows import window_means

__all__ = ["IOSettings", "optimize_field"]

SQUARINGS = 4  # of the velocity's integral in every step: enough for the gradient
COMPOSED_STEPS = 7  # between two compositions: few enough that the displacements stay small


@dataclass(frozen=True)
class IOSettings:
    """Schedule and objective.

    Attributes
    ----------
    iterations : int
        Number of steps of Adam at full resolution.
    coarse_iterations : tuple of int
        Numbers of steps before these, on images of a quarter and of half the resolution, with smaller windows
        (:meth:`Objective.coarser`). Control points are at least one voxel of these images apart.
    learning_rate : float
        Learning rate of Adam, in voxels of the full grid. Siebert et al. use 1 and start from zero. A network's
        prediction is closer, so the steps here are smaller.
    spacing : int
        Distance of the control points in voxels. If it does not divide the grid's size, the last ones lie outside.
    smoothings : int
        Number of average poolings (3 voxels) of the control field.
    form : {"displacement", "diffeomorphic"}
        How the control field changes the displacement: it is added to it, or to its velocity on coarser images, and
        composed with it at full resolution. The diffeomorphic form takes the current displacement as a velocity.
    objective : Objective
        Similarity window and regularisation weights.
    augmentation : float
        Strength of the affine augmentation (:class:`nio_pydra.optimize.augmentation.RandomAffines`): at every step the
        images are compared where another random affine takes the grid. 0: always on the grid itself.
    """

    iterations: int = 200
    coarse_iterations: tuple[int, int] = (0, 0)
    learning_rate: float = 0.1
    spacing: int = 2
    smoothings: int = 2
    form: Literal["displacement", "diffeomorphic"] = "displacement"
    objective: Objective = field(default_factory=Objective)
    augmentation: float = 0.0

    def __post_init__(self) -> None:
        if self.form not in ("displacement", "diffeomorphic"):
            raise ValueError(f"form is {self.form!r}: expected 'displacement' or 'diffeomorphic'")
        for name, least in (("iterations", 0), ("spacing", 1), ("smoothings", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: expected {least} or more")
        if len(self.coarse_iterations) != 2 or min(self.coarse_iterations) < 0:
            raise ValueError(f"coarse_iterations is {self.coarse_iterations}: expected 2 numbers, none negative")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: expected a positive number")
        if not 0 <= self.augmentation < 0.5:
            raise ValueError(f"augmentation is {self.augmentation}: expected 0 or more, below 0.5")

    def refine(self, estimate: Estimate) -> Estimate:
        """Optimise the current field."""
        return estimate.with_field(optimize_field(estimate.field, estimate.problem, self, progress=estimate.progress))


def optimize_field(initial: Tensor, pair: Problem, settings: IOSettings, *, progress: bool | None = None) -> Tensor:
    """Refine a unit displacement field ``(1, 3, D, H, W)`` by gradient descent.

    Raises
    ------
    ComputationError
        If the optimisation diverges.
    """
    field = initial
    diffeomorphic = settings.form == "diffeomorphic"
    with Progress(sum(settings.coarse_iterations) + settings.iterations, progress) as report:
        steps = (*settings.coarse_iterations, settings.iterations)
        for level, (factor, count) in enumerate(zip((4, 2, 1), steps, strict=True), start=1):
            kind = _Stage
            if diffeomorphic:
                kind = _VelocityStage if factor > 1 else _ComposedStage
                if factor == 1:
                    with torch.no_grad():
                        field = integrate(field)
            if count:
                stage = kind(field, pair, settings, factor)
                for done in range(0, count, kind.longest):
                    report.minimise(stage.loss, stage.optimizer, min(kind.longest, count - done), level=level)
                    stage.accept()
                field = stage.field
    return finite_field(field.contiguous())


class _Stage:
    """Steps at 1 / `factor` of the resolution that change a field of the full one by adding to it.

    Attributes
    ----------
    field : Tensor
        ``(1, 3, D, H, W)``, with the changes that were accepted.
    """

    longest = sys.maxsize
    """Number of steps after which the change must be accepted."""

    def __init__(self, field: Tensor, pair: Problem, settings: IOSettings, factor: int) -> None:
        self.field, self.settings, self.factor = field, settings, factor
        self.pair, self.objective = pair.coarser(factor), settings.objective.coarser(factor)
        # Voxels of the full grid that a unit of each grid stands for.
        self.unit = voxel_scale(field.shape[2:], device=field.device)
        self.coarse_unit = factor * voxel_scale(self.pair.fixed.shape[2:], device=field.device)
        self.coarse_field = block_means(field * self.unit, factor) / self.coarse_unit
        self.spacing = -(-settings.spacing // factor)  # in voxels of the coarse grid
        size = [-(-n // self.spacing) for n in self.coarse_field.shape[2:]]
        self.control = torch.zeros(1, 3, *size, device=field.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.control], lr=settings.learning_rate)
        self.affines = None
        if settings.augmentation:
            self.affines = RandomAffines(settings.augmentation, self.coarse_field.shape[2:], field.device)

    def loss(self) -> Tensor:
        change = self._change(self.coarse_unit, self.spacing, self.coarse_field.shape)
        displacement = self.displacement(self.changed(self.coarse_field, change))
        if self.affines is None:
            return self.pair.loss(displacement, self.objective)
        return loss_through(self.affines.next(), self.pair, displacement, self.objective)

    def accept(self) -> None:
        """Make the change a part of the field, and start another one from zero."""
        with torch.no_grad():
            change = self._change(self.unit, self.spacing * self.factor, self.field.shape)
            self.field = self.changed(self.field, change)
            self.coarse_field = block_means(self.field * self.unit, self.factor) / self.coarse_unit
            self.control.zero_()

    def changed(self, field: Tensor, change: Tensor) -> Tensor:
        """Return a field with a change."""
        return field + change

    def displacement(self, field: Tensor) -> Tensor:
        """Return the displacement that a field stands for."""
        return field

    def _change(self, unit: Tensor, spacing: int, shape: torch.Size) -> Tensor:
        smooth: Tensor = self.control
        for _ in range(self.settings.smoothings):
            smooth = window_means(smooth, 3)
        depth, height, width = shape[2:]
        return upsample(smooth / unit, spacing)[:, :, :depth, :height, :width]


class _VelocityStage(_Stage):
    """Steps that add to a stationary velocity."""

    def displacement(self, field: Tensor) -> Tensor:
        return integrate(field, SQUARINGS)


class _ComposedStage(_Stage):
    """Steps that deform the fixed space before a displacement."""

    longest = COMPOSED_STEPS

    def changed(self, field: Tensor, change: Tensor) -> Tensor:
        return compose(change, field)
