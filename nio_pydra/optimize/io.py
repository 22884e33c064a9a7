"""Instance optimisation of the displacement field itself: the baseline that NIO improves on.

Adam optimises a control field of half the resolution, which is smoothed by repeated average pooling and added to the
network's prediction. Source: Siebert et al., "Fast 3D registration with accurate optimisation and little learning for
Learn2Reg 2021", as described in the NIO paper (Section 3, baselines).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nio_pydra.optimize.augmentation import RandomAffines, loss_through
from nio_pydra.optimize.estimate import Estimate
from nio_pydra.optimize.problem import Objective, Problem
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
        Number of steps of Adam.
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
    scale = voxel_scale(initial.shape[2:], device=initial.device)
    size = [-(-n // settings.spacing) for n in initial.shape[2:]]
    affines = RandomAffines(settings.augmentation, initial.shape[2:], initial.device) if settings.augmentation else None
    control = torch.zeros(1, 3, *size, device=initial.device, requires_grad=True)

    def refined(squarings: int) -> Tensor:
        smooth = control
        for _ in range(settings.smoothings):
            smooth = window_means(smooth, 3)
        depth, height, width = initial.shape[2:]
        changed = upsample(smooth / scale, settings.spacing)[:, :, :depth, :height, :width] + initial
        return integrate(changed, squarings) if settings.form == "velocity" else changed

    def loss() -> Tensor:
        if affines is None:
            return pair.loss(refined(SQUARINGS), settings.objective)
        return loss_through(affines.next(), pair, refined(SQUARINGS), settings.objective)

    with Progress(settings.iterations, progress) as report:
        optimizer = torch.optim.Adam([control], lr=settings.learning_rate)
        report.minimise(loss, optimizer, settings.iterations, level=3)
    with torch.no_grad():
        return finite_field(refined(FINAL_SQUARINGS).contiguous())
