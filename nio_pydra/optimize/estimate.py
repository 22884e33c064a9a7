"""State of a registration, and the interface of what refines it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from nio_pydra.networks import Network
from nio_pydra.optimize.bspline import bspline
from nio_pydra.optimize.problem import Problem
from nio_pydra.optimize.progress import finite_field
from nio_pydra.optimize.resources import autocast

__all__ = ["Estimate", "Refiner"]


@dataclass(frozen=True)
class Estimate:
    """A displacement field for a problem, and its origin.

    Attributes
    ----------
    problem : Problem
        Pair to register.
    network : Network or None
        Network that predicts the first field, on the device of the problem. None: the first field is zero.
    condition : float or None
        Regularisation weight that is passed to a conditional network.
    precision : torch.dtype
        Type of the network's convolutions.
    progress : bool or None
        See :class:`nio_pydra.optimize.progress.Progress`.
    smoothings : int
        Average poolings of the B-spline model of the network's field (:func:`nio_pydra.optimize.bspline.bspline`). 0:
        the field as the network gives it.
    refined : Tensor or None
        Unit displacement field ``(1, 3, D, H, W)`` float32 of the last refiner. None before the first one.
    """

    problem: Problem
    network: Network | None = None
    condition: float | None = None
    precision: torch.dtype = torch.float32
    progress: bool | None = None
    smoothings: int = 0
    refined: Tensor | None = None

    @property
    def field(self) -> Tensor:
        """Current field. The first one is computed only when it is needed.

        Raises
        ------
        ComputationError
            If the network's field is not finite.
        """
        if self.refined is not None:
            return self.refined
        fixed = self.problem.fixed
        if self.network is None:
            return torch.zeros(1, 3, *fixed.shape[2:], device=fixed.device)
        with torch.no_grad(), autocast(fixed.device, self.precision):
            predicted = self.network.predict(self.problem.moving, fixed, condition=self.condition)
            predicted = bspline(predicted, fixed.shape[2:], self.smoothings)
        return finite_field(predicted.contiguous())

    def with_field(self, field: Tensor) -> Estimate:
        """Return the estimate with a better field."""
        return replace(self, refined=field)


class Refiner(Protocol):
    """Settings of a refinement, with the method that performs it."""

    def refine(self, estimate: Estimate) -> Estimate:
        """Return an estimate with a better field.

        Raises
        ------
        InputError
            If the refinement does not support the estimate's network.
        ComputationError
            If the optimisation diverges.
        """
        ...
