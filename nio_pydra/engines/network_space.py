"""A pair in the space of a network: both images on the network's grid, and the field back on the fixed grid."""

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
    """A pair as a network sees it.

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
            What :func:`grid_around` gives.
        fixed : Nifti1Image
            The foreground of the pair's fixed image.
        scaling : str
            Intensity scaling of the network, see :func:`nio_pydra.spatial.conform.scale_intensities`.
        device : torch.device
            Where the problem is to be solved.

        Raises
        ------
        InputError
            If the affine brings no part of the moving object onto the grid.
        """
        images = (
            grid.sample(fixed),
            grid.sample(pair.moving_object, pair.affine),
        )
        if not images[1].any():
            raise InputError(
                "after the affine alignment no part of the moving object lies on the fixed one: "
                "the alignment failed, check both images and masks."
            )
        weights = None
        if pair.lesion_mask is not None:
            outside = (np.asanyarray(pair.lesion_mask.dataobj) == 0).astype(np.float32)
            # Sampled as a lesion and inverted afterwards, so that beyond the image there is no lesion.
            lesion = grid.sample(Nifti1Image(1 - outside, pair.lesion_mask.affine), pair.affine)
            weights = torch.from_numpy(1 - lesion)[None, None].to(device)
        scaled = [scale_intensities(image, scaling).to(device) for image in images]
        return cls(grid, Problem(scaled[0], scaled[1], moving_weights=weights), pair.fixed)

    def back(self, field: Tensor) -> DisplacementField:
        """Bring a unit field ``(1, 3, D, H, W)`` of the problem onto the fixed image's grid, in mm."""
        return to_displacement_field(field, self.grid, self.fixed)


def grid_around(foreground: Nifti1Image, conventions: Mapping[str, Any], multiple: int) -> NetworkGrid:
    """Return the grid of a network around the object in an image.

    Parameters
    ----------
    foreground : Nifti1Image
        ``(X, Y, Z)``, zero outside the object.
    conventions : mapping
        ``orientation`` and ``voxel_size_mm`` of the network's metadata.
    multiple : int
        Every axis is a multiple of this.
    """
    return network_grid(
        foreground,
        np.asanyarray(foreground.dataobj) != 0,
        orientation=conventions["orientation"],
        voxel_size_mm=conventions["voxel_size_mm"],
        multiple=multiple,
    )
