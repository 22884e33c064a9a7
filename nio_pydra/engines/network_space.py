"""A pair in the space of a network: images on the network's grid, and the field back on the fixed grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image
from torch import Tensor

from nio_pydra.engines.contract import Pair
from nio_pydra.errors import InputError
from nio_pydra.optimize.problem import Problem
from nio_pydra.spatial.conform import NetworkGrid, network_grid, scale_intensities, to_displacement_field
from nio_pydra.spatial.transforms import DisplacementField

__all__ = ["NetworkSpace", "grid_around"]


@dataclass(frozen=True)
class NetworkSpace:
    """A pair in the space of a network.

    Attributes
    ----------
    grid : NetworkGrid
        Grid of the problem, in the fixed image's world.
    problem : Problem
        Both images on that grid.
    fixed : Nifti1Image
        The fixed image, ``(X, Y, Z)``.
    """

    grid: NetworkGrid
    problem: Problem
    fixed: Nifti1Image

    @classmethod
    def of(cls, pair: Pair, grid: NetworkGrid, fixed: Nifti1Image, scaling: str, device: torch.device) -> NetworkSpace:
        """Sample both images on a grid, the moving one through the pair's affine.

        Parameters
        ----------
        pair : Pair
            Images, affine and masks.
        grid : NetworkGrid
            Grid of :func:`grid_around`.
        fixed : Nifti1Image
            `pair.fixed_object`, which the caller already has.
        scaling : str
            Intensity scaling of the network (:func:`nio_pydra.spatial.conform.scale_intensities`).
        device : torch.device
            Device of the problem.

        Raises
        ------
        InputError
            If no part of the moving object lies on the grid.
        """
        images = (grid.sample(fixed), grid.sample(pair.moving_object, pair.affine))
        if not images[1].any():
            raise InputError(
                "No part of the moving object lies on the fixed one after the affine alignment, which has failed. "
                "Check both images and their masks."
            )
        weights = None
        if pair.lesion_mask is not None:
            lesion_voxels = (np.asanyarray(pair.lesion_mask.dataobj) != 0).astype(np.float32)
            # The lesion itself is sampled, so that there is none outside the image.
            lesion = grid.sample(Nifti1Image(lesion_voxels, pair.lesion_mask.affine), pair.affine)
            weights = torch.from_numpy(1 - lesion)[None, None].to(device)
        scaled = [scale_intensities(image, scaling).to(device) for image in images]
        return cls(grid, Problem(scaled[0], scaled[1], moving_weights=weights), pair.fixed)

    def back(self, field: Tensor) -> DisplacementField:
        """Convert a unit field ``(1, 3, D, H, W)`` of the problem to mm on the fixed image's grid."""
        return to_displacement_field(field, self.grid, self.fixed)


def grid_around(foreground: Nifti1Image, conventions: Mapping[str, Any], multiple: int) -> NetworkGrid:
    """Return a network's grid around the object in an image.

    Parameters
    ----------
    foreground : Nifti1Image
        ``(X, Y, Z)``, zero outside the object.
    conventions : mapping
        ``orientation`` and ``voxel_size_mm`` of the network's metadata.
    multiple : int
        Number that divides the size of every axis.
    """
    return network_grid(
        foreground,
        np.asanyarray(foreground.dataobj) != 0,
        orientation=conventions["orientation"],
        voxel_size_mm=conventions["voxel_size_mm"],
        multiple=multiple,
    )
