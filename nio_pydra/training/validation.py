"""How well a network in training aligns brains that it never saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nio_pydra.errors import InputError
from nio_pydra.losses import lncc
from nio_pydra.metrics import dice
from nio_pydra.networks import Network
from nio_pydra.optimize.resources import autocast
from nio_pydra.spatial.unit_grid import unit_to_voxel, upsample, warp
from nio_pydra.training.pairs import ImagePair, ImageSource
from nio_pydra.training.recipes import RECIPES

__all__ = ["Score", "Validation", "folded"]


class Validation:
    """Pairs of held-out brains, of one spacing.

    Parameters
    ----------
    source : ImageSource
        Its held-out brains are used; with fewer than two there is no score.
    spacing : {1, 2}
        Voxel size in mm.
    condition : float
        What a conditional network is told.
    precision : torch.dtype
        Of the convolutions, bfloat16 or float32.
    """

    def __init__(
        self, source: ImageSource, spacing: int, condition: float = 0.4, precision: torch.dtype = torch.float32
    ) -> None:
        self.spacing, self.condition, self.precision = spacing, condition, precision
        self.pairs = source.validation(spacing)

    def score(self, network: Network | None, level: int = 0) -> Score | None:
        """Measure the first `level` levels of a network; without one, the images as they lie."""
        if not self.pairs:
            return None
        values, folds = [], []
        labelled = all(pair.fixed_labels is not None and pair.moving_labels is not None for pair in self.pairs)
        for pair in self.pairs:
            unit = None if network is None else self._predict(network, pair, level)
            if unit is not None:
                folds.append(folded(unit, pair.fixed))
            values.append(_overlap(pair, unit) if labelled else _similarity(pair, unit))
        name = "Dice" if labelled else "similarity"
        return Score(name, float(np.mean(values)), 100 * float(np.mean(folds or 0)))

    def _predict(self, network: Network, pair: ImagePair, level: int) -> Tensor:
        device = next(network.parameters()).device
        moving, fixed = (image.to(device) for image in (pair.moving, pair.fixed))
        with torch.no_grad(), autocast(device, self.precision):
            unit = RECIPES[network.architecture].whole_field(network, moving, fixed, level, self.condition)
        return upsample(unit, pair.moving.shape[2] // unit.shape[2]).float().cpu()


@dataclass(frozen=True)
class Score:
    """How well held-out brains are aligned.

    Attributes
    ----------
    name : str
        "Dice", the mean over pairs and structures, or "similarity" (local cross-correlation) where there are no labels.
    value : float
        Larger is better.
    fold_percent : float
        Share of the brain where the map turns inside out.
    """

    name: str
    value: float
    fold_percent: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4f}, folds {self.fold_percent:.3f} %"


def _overlap(pair: ImagePair, unit: Tensor | None) -> float:
    moving, fixed = pair.moving_labels, pair.fixed_labels
    assert moving is not None and fixed is not None
    moved = moving if unit is None else warp(moving, unit, mode="nearest")
    a, b = (labels[0, 0].numpy().astype(np.int32) for labels in (moved, fixed))
    if not (overlaps := dice(a, b)):
        raise InputError("Two brains that are held out have no label in common: leave one out, or both their labels.")
    return float(np.mean(list(overlaps.values())))


def _similarity(pair: ImagePair, unit: Tensor | None) -> float:
    moved = pair.moving if unit is None else warp(pair.moving, unit)
    return -float(lncc(pair.fixed, moved, 7, (pair.fixed > 0).float()))


def folded(unit: Tensor, fixed: Tensor) -> float:
    """Share of the fixed brain's voxels where the map turns inside out."""
    voxels = unit_to_voxel(unit)[0]
    # Row i, column j: derivative of component i along axis j. The determinant is much faster than a general one.
    j = [[slope + (a == i) for a, slope in enumerate(torch.gradient(voxels[i]))] for i in range(3)]
    determinant = (
        j[0][0] * (j[1][1] * j[2][2] - j[1][2] * j[2][1])
        - j[0][1] * (j[1][0] * j[2][2] - j[1][2] * j[2][0])
        + j[0][2] * (j[1][0] * j[2][1] - j[1][1] * j[2][0])
    )
    return float((determinant[fixed[0, 0] > 0] <= 0).double().mean())
