"""How well a network in training aligns label maps that it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nio_pydra.metrics import dice
from nio_pydra.networks import LapIRN
from nio_pydra.networks.lapirn import image_pyramid
from nio_pydra.spatial.unit_grid import unit_to_voxel, upsample, warp
from nio_pydra.training.pairs import validation_pairs
from nio_pydra.training.synthesis import SynthesisSettings

__all__ = ["Validation"]

#: The structures that segmentations of FreeSurfer are commonly compared by; vessels and specks are none of them.
STRUCTURES = (
    2,
    3,
    4,
    7,
    8,
    10,
    11,
    12,
    13,
    16,
    17,
    18,
    26,
    28,
    41,
    42,
    43,
    46,
    47,
    49,
    50,
    51,
    52,
    53,
    54,
    58,
    60,
)


class Validation:
    """Ordered pairs of held-out label maps, shown as T1-weighted images of one spacing.

    Parameters
    ----------
    maps : list of Path
        Prepared label maps; with none, the score is empty.
    settings : SynthesisSettings
        How the images are made; their shape stays as it is.
    spacing : {1, 2}
        Voxel size in mm.
    """

    def __init__(self, maps: list[Path], settings: SynthesisSettings, spacing: int) -> None:
        self.spacing = spacing
        self.pairs = validation_pairs(maps, settings, spacing=spacing) if maps else []
        if spacing == 1:
            self.pairs = self.pairs[: len(maps)]  # eight times the voxels: one pair for each map must do

    def overlap(self, network: LapIRN | None, level: int = 0) -> float:
        """Mean Dice over pairs and structures after the first `level` levels (no network: as the images lie)."""
        return self._measure(network, level)[0]

    def score(self, network: LapIRN | None, level: int = 0) -> str:
        """As :meth:`overlap`, with the share of folded voxels, in words."""
        if not self.pairs:
            return "none held out"
        overlap, folds = self._measure(network, level)
        return f"Dice {overlap:.4f}, folds {100 * folds:.3f} %"

    def _measure(self, network: LapIRN | None, level: int) -> tuple[float, float]:
        overlaps, folds = [], []
        for images, labels in self.pairs:
            moved = labels[0]
            if network is not None:
                unit = self._predict(network, images, level)
                moved = warp(moved, unit, mode="nearest")
                folds.append(_folded(unit, labels[1]))
            overlaps.append(float(np.mean(list(dice(_structures(moved), _structures(labels[1])).values()))))
        return float(np.mean(overlaps)), float(np.mean(folds or 0))

    def _predict(self, network: LapIRN, images: tuple[Tensor, Tensor], level: int) -> Tensor:
        moving, fixed = (image_pyramid(image, 3 if self.spacing == 1 else 2) for image in images)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            unit = network.on_pyramid(moving, fixed, levels=level)[-1].field
        return upsample(unit, images[0].shape[2] // unit.shape[2])


def _structures(labels: Tensor) -> np.ndarray:
    values = labels[0, 0].numpy().astype(np.int16)
    return np.where(np.isin(values, STRUCTURES), values, 0)


def _folded(unit: Tensor, labels: Tensor) -> float:
    """Share of the brain's voxels where the map turns inside out."""
    voxels = unit_to_voxel(unit)[0].numpy()
    gradients = np.stack([np.stack(np.gradient(component)) for component in voxels], axis=-1)  # (axis, ..., component)
    jacobian = np.moveaxis(gradients, 0, -2) + np.eye(3, dtype=np.float32)
    inside = _structures(labels) > 0
    return float((np.linalg.det(jacobian[inside]) <= 0).mean())
