"""Instance optimisation of the displacement field itself: the baseline that NIO improves on.

Adam optimises a control field of half the resolution, which is smoothed by repeated average pooling and added to the
network's prediction. Source: Siebert et al., "Fast 3D registration with accurate optimisation and little learning for
Learn2Reg 2021", as described in the NIO paper (Section 3, baselines).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nio_pydra.optimize.estimate import Estimate
from nio_pydra.optimize.problem import Objective, Problem
from nio_pydra.optimize.progress import Progress, finite_field
from nio_pydra.spatial.unit_grid import upsample, voxel_scale
from nio_pydra.spatial.windows import window_means

__all__ = ["IOSettings", "optimize_field"]


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
    objective : Objective
        Similarity window and regularisation weight.
    """

    iterations: int = 200
    learning_rate: float = 0.1
    spacing: int = 2
    smoothings: int = 2
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self) -> None:
        for name, least in (("iterations", 0), ("spacing", 1), ("smoothings", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: expected {least} or more")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}: expected a positive number")

    def refine(self, estimate: Estimate) -> Estimate:
        """Optimise the current field."""
        return estimate.with_field(optimize_field(estimate.field, estimate.problem, self, progress=estimate.progress))


def optimize_field(initial: Tensor, pair: Problem, settings: IOSettings, *, progress: bool | None = None) -> Tensor:
    """Refine a unit field ``(1, 3, D, H, W)`` by gradient descent on the field itself.

    Raises
    ------
    ComputationError
        If the optimisation diverges.
    """
    scale = voxel_scale(initial.shape[2:], device=initial.device)
    size = [-(-n // settings.spacing) for n in initial.shape[2:]]
    control = torch.zeros(1, 3, *size, device=initial.device, requires_grad=True)

    def refined() -> Tensor:
        smooth = control
        for _ in range(settings.smoothings):
            smooth = window_means(smooth, 3)
        depth, height, width = initial.shape[2:]
        return upsample(smooth / scale, settings.spacing)[:, :, :depth, :height, :width] + initial

    with Progress(settings.iterations, progress) as report:
        optimizer = torch.optim.Adam([control], lr=settings.learning_rate)
        report.minimise(lambda: pair.loss(refined(), settings.objective), optimizer, settings.iterations, level=3)
    with torch.no_grad():
        return finite_field(refined().contiguous())
