"""A pair in the space of a network: images on the network's grid, and the field back on the fixed grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from torch import Tensor

from nio_pydra.engines.contract import Pair
from nio_pydra.errors import InputError
from nio_pydra.optimize.problem import Problem
from nio_pydra.profiles import Profile
from nio_pydra.spatial.conform import NetworkGrid, network_grid, scale_intensities, to_displacement_field
from nio_pydra.spatial.transforms import DisplacementField, apply_affine

__all__ = ["NetworkSpace", "grid_around", "grid_of"]

log = logging.getLogger("nio_pydra")

CONTRAST = "likeness of contrast"
"""Name of the limit of a profile below which the moving image is inverted."""


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
    correlation : float
        Correlation of the two images where both show the object, after the affine.
    inverted : bool
        Whether the moving image of the problem is bright where the real one is dark.
    """

    grid: NetworkGrid
    problem: Problem
    fixed: Nifti1Image
    correlation: float
    inverted: bool

    @classmethod
    def of(
        cls,
        pair: Pair,
        grid: NetworkGrid,
        fixed: Nifti1Image,
        scaling: str,
        device: torch.device,
        *,
        invert: bool = True,
    ) -> NetworkSpace:
        """Sample both images on a grid, the moving one through the pair's affine.

        Networks know images of like contrast only. So the moving image is inverted, with a warning, if its correlation
        with the fixed one is below the profile's limit: it is bright where the fixed one is dark. LNCC, which is a
        square, cannot tell that white matter is taken for grey matter.

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
        invert : bool
            Whether a moving image of opposite contrast is inverted.

        Raises
        ------
        InputError
            If no part of the moving object lies on the grid.
        """
        moving, region = pair.moving_object, pair.moving_region
        images = (grid.sample(fixed), grid.sample(moving, pair.affine))
        if not (images[1] if region is None else grid.sample(region, pair.affine)).any():
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
        compared = None
        if pair.fixed_region is not None:
            compared = torch.from_numpy(grid.sample(pair.fixed_region))[None, None].to(device)
        target, moved = (_scaled(image, scaling, pair.profile) for image in images)
        correlation, limit = _correlation(target, moved), pair.profile.limits.get(CONTRAST)
        inverted = invert and limit is not None and correlation < limit.look[0]
        if inverted:
            log.warning(
                "The moving image is bright where the fixed one is dark (correlation %.2f after the affine). It is "
                "inverted for the registration, as networks know only images of like contrast: look at the result.",
                correlation,
            )
            moved = _scaled(grid.sample(_inverted(moving), pair.affine), scaling, pair.profile)
        problem = Problem(target.to(device), moved.to(device), compared, weights)
        return cls(grid, problem, pair.fixed, correlation, inverted)

    def back(self, field: Tensor) -> DisplacementField:
        """Convert a unit field ``(1, 3, D, H, W)`` of the problem to mm on the fixed image's grid."""
        return to_displacement_field(field, self.grid, self.fixed)


def _correlation(fixed: Tensor, moving: Tensor) -> float:
    """Return the correlation of two images where both show the object, which is above zero."""
    both = (fixed > 0) & (moving > 0)
    found = torch.corrcoef(torch.stack([fixed[both], moving[both]]))[0, 1] if both.any() else torch.zeros(())
    return float(found.nan_to_num())


def _inverted(image: Nifti1Image) -> Nifti1Image:
    """Exchange bright and dark in an object, on the image's own grid: between voxels, its border is mixed with 0."""
    voxels = np.asanyarray(image.dataobj)
    inside = voxels > 0
    top = np.percentile(voxels[inside], 99.9)
    return Nifti1Image(np.where(inside, np.maximum(top - voxels, 0.01 * top), 0).astype(np.float32), image.affine)


def _scaled(volume: NDArray[np.float32], scaling: str, profile: Profile) -> Tensor:
    """Scale a volume to [0, 1]: by the profile's intensities where they have a unit, otherwise as the network's."""
    if profile.only_object or profile.intensity_window is None:
        return scale_intensities(volume, scaling)
    low, high = profile.intensity_window
    return torch.from_numpy(volume / np.float32(high - low))[None, None]


def grid_of(pair: Pair, fixed: Nifti1Image, conventions: Mapping[str, Any], multiple: int) -> NetworkGrid:
    """Return a network's grid for a pair.

    If the images are not zero outside the object, the grid also holds the moving object as the affine places it: what
    has no room there cannot be moved into the fixed object.

    Parameters
    ----------
    pair : Pair
        Images, affine and masks.
    fixed : Nifti1Image
        `pair.fixed_object`, which the caller already has.
    conventions, multiple
        See :func:`grid_around`.
    """
    fixed_region, moving_region = pair.fixed_region, pair.moving_region
    if fixed_region is None or moving_region is None:
        return grid_around(fixed, conventions, multiple)
    voxels = np.argwhere(np.asanyarray(moving_region.dataobj))
    ends = np.stack([voxels.min(axis=0), voxels.max(axis=0)])
    corners = np.array([[ends[i, 0], ends[j, 1], ends[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    to_fixed = np.linalg.inv(pair.affine) @ moving_region.affine
    return grid_around(fixed_region, conventions, multiple, apply_affine(to_fixed, corners))


def grid_around(
    foreground: Nifti1Image,
    conventions: Mapping[str, Any],
    multiple: int,
    reach: NDArray[np.float64] | None = None,
) -> NetworkGrid:
    """Return a network's grid around the object in an image.

    Parameters
    ----------
    foreground : Nifti1Image
        ``(X, Y, Z)``, zero outside the object.
    conventions : mapping
        ``orientation`` and ``voxel_size_mm`` of the network's metadata.
    multiple : int
        Number that divides the size of every axis.
    reach : ndarray, optional
        ``(N, 3)`` points, RAS mm, that must lie on the grid as well.
    """
    return network_grid(
        foreground,
        np.asanyarray(foreground.dataobj) != 0,
        orientation=conventions["orientation"],
        voxel_size_mm=conventions["voxel_size_mm"],
        multiple=multiple,
        reach=reach,
    )
