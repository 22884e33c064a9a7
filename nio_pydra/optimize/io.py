"""Instance optimisation of the displacement field itself: the baseline that NIO improves on.

Adam optimises a control field of half the resolution, which is smoothed by repeated average pooling and added to the
network's prediction. A few steps on coarser images can come first, which cost a fraction of those at full resolution.
Source, without these: Siebert et al., "Fast 3D registration with accurate optimisation and little learning for
Learn2Reg 2021", as described in the NIO paper (Section 3, baselines).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nio_pydra.optimize.augmentation import RandomAffines, loss_through
from nio_pydra.optimize.estimate import Estimate
from nio_pydra.optimize.problem import Objective, Problem, block_means
from nio_pydra.optimize.progress import Progress, finite_field
from nio_pydra.spatial.unit_grid import integrate, upsample, voxel_scale
from nio_pydra.spatial.windows import window_means

__all__ = ["IOSettings", "optimize_field"]

SQUARINGS = 4  # of the velocity's integral in every step: enough for the gradient
FINAL_SQUARINGS = 7  # as in LapIRN


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
    form : {"displacement", "velocity"}
        What the control field is added to: the displacement, or the stationary velocity whose integral is the
        displacement. The integral hardly folds. A current displacement is taken as the first velocity.
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
    form: Literal["displacement", "velocity"] = "displacement"
    objective: Objective = field(default_factory=Objective)
    augmentation: float = 0.0

    def __post_init__(self) -> None:
        if self.form not in ("displacement", "velocity"):
            raise ValueError(f"form is {self.form!r}: expected 'displacement' or 'velocity'")
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
    """Refine a unit displacement field ``(1, 3, D, H, W)`` by gradient descent on the field or on its velocity.

    Raises
    ------
    ComputationError
        If the optimisation diverges.
    """
    field = initial
    steps = (*settings.coarse_iterations, settings.iterations)
    with Progress(sum(steps), progress) as report:
        for level, (factor, count) in enumerate(zip((4, 2, 1), steps, strict=True), start=1):
            if count:
                stage = _Stage(field, pair, settings, factor)
                optimizer = torch.optim.Adam([stage.control], lr=settings.learning_rate)
                report.minimise(stage.loss, optimizer, count, level=level)
                field = stage.result()
    with torch.no_grad():
        return finite_field(_displacement(field, settings, FINAL_SQUARINGS).contiguous())


class _Stage:
    """Steps at 1 / `factor` of the resolution that improve a displacement or velocity of the full one."""

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
        self.affines = None
        if settings.augmentation:
            self.affines = RandomAffines(settings.augmentation, self.coarse_field.shape[2:], field.device)

    def loss(self) -> Tensor:
        changed = self.coarse_field + self._change(self.coarse_unit, self.spacing, self.coarse_field.shape)
        displacement = _displacement(changed, self.settings, SQUARINGS)
        if self.affines is None:
            return self.pair.loss(displacement, self.objective)
        return loss_through(self.affines.next(), self.pair, displacement, self.objective)

    def result(self) -> Tensor:
        with torch.no_grad():
            return self.field + self._change(self.unit, self.spacing * self.factor, self.field.shape)

    def _change(self, unit: Tensor, spacing: int, shape: torch.Size) -> Tensor:
        smooth: Tensor = self.control
        for _ in range(self.settings.smoothings):
            smooth = window_means(smooth, 3)
        depth, height, width = shape[2:]
        return upsample(smooth / unit, spacing)[:, :, :depth, :height, :width]


def _displacement(field: Tensor, settings: IOSettings, squarings: int) -> Tensor:
    return integrate(field, squarings) if settings.form == "velocity" else field
