"""Conversion of images to a network's space, and of its field back.

A network takes images of one orientation and voxel size, cropped to the object, with a size that its pyramid can halve.
Its grid lies along the fixed image's own axes, so that an oblique atlas is not rotated. The moving image is sampled
onto it through the affine in one interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from torch import Tensor

from nio_pydra.spatial.transforms import (
    DisplacementField,
    Transform,
    apply_affine,
    interpolate,
    resample,
    voxel_centres,
)
from nio_pydra.spatial.unit_grid import unit_to_voxel

__all__ = ["NetworkGrid", "network_grid", "scale_intensities", "to_displacement_field"]

MARGIN_VOXELS = 6  # around the object: half a similarity window, and some for the network's borders
FADE_MM = 20.0  # distance from the network's grid at which the field has faded to zero


@dataclass(frozen=True)
class NetworkGrid:
    """A grid in the network's orientation.

    Attributes
    ----------
    shape : tuple of int
        (D, H, W).
    affine : ndarray
        4x4, voxel to world of the fixed image, RAS mm.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def sample(self, image: Nifti1Image, to_image: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
        """Resample an image onto the grid, trilinearly.

        Parameters
        ----------
        image : Nifti1Image
            ``(X, Y, Z)``.
        to_image : ndarray, optional
            4x4, RAS mm, from the grid's world to the image's. Default: the identity.
        """
        reference = nib.nifti1.Nifti1Image(np.broadcast_to(np.uint8(0), self.shape), self.affine)
        transform = Transform(() if to_image is None else (to_image,))
        return np.asanyarray(resample(image, reference, transform).dataobj)


def network_grid(
    fixed: Nifti1Image,
    mask: NDArray[np.bool_],
    *,
    orientation: str = "LIA",
    voxel_size_mm: float = 1.0,
    multiple: int = 8,
    reach: NDArray[np.float64] | None = None,
) -> NetworkGrid:
    """Return a grid around an object, in a network's orientation and voxel size.

    Parameters
    ----------
    fixed : Nifti1Image
        ``(X, Y, Z)``.
    mask : ndarray of bool
        Mask of the object, same shape.
    orientation : str
        Axis codes, for example "LIA": the first axis runs to the left.
    voxel_size_mm : float
        Edge of the cubic voxels.
    multiple : int
        Number that divides the length of every axis.
    reach : ndarray, optional
        ``(N, 3)`` points in the world of `fixed`, RAS mm, that must lie on the grid as well.
    """
    reorient = ornt_transform(io_orientation(fixed.affine), axcodes2ornt(tuple(orientation)))
    affine = fixed.affine @ inv_ornt_aff(reorient, fixed.shape)
    reoriented = nib.orientations.apply_orientation(mask, reorient)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    first, last = np.empty(3), np.empty(3)
    for axis in range(3):
        used = np.flatnonzero(reoriented.any(axis=tuple(a for a in range(3) if a != axis)))
        first[axis], last[axis] = used[0], used[-1]
    if reach is not None:
        points = apply_affine(np.linalg.inv(affine), reach)
        first, last = np.minimum(first, points.min(axis=0)), np.maximum(last, points.max(axis=0))
    extent = (last - first) * spacing / voxel_size_mm + 1 + 2 * MARGIN_VOXELS
    shape = tuple(int(multiple * np.ceil(round(n, 3) / multiple)) for n in extent)
    # The grid starts on a voxel of the fixed image, so that equal voxel sizes need no interpolation.
    centre = (first + last) / 2
    start = np.round(centre - (np.array(shape) - 1) / 2 * voxel_size_mm / spacing)
    scale = voxel_size_mm / spacing
    # Rounding in the header must not cause an interpolation.
    scale[np.abs(scale - 1) < 1e-4] = 1.0
    local = np.diag([*scale, 1.0])
    local[:3, 3] = start
    return NetworkGrid(shape, affine @ local)  # type: ignore[arg-type]


def scale_intensities(volume: NDArray[np.float32], scaling: str) -> Tensor:
    """Scale an object's intensities to [0, 1], as in a network's training.

    Parameters
    ----------
    volume : ndarray
        ``(D, H, W)``, background 0.
    scaling : {"minmax", "percentile"}
        "minmax": from the smallest voxel, but at most 0, to the largest. "percentile": the same up to the 99.9th
        percentile of the voxels that are not 0, clipped.

    Returns
    -------
    Tensor
        ``(1, 1, D, H, W)`` float32.
    """
    inside = volume != 0
    values = volume[inside]
    # The background stays darkest, also in a standardised image with negative values.
    low = min(0.0, float(values.min(initial=0.0)))
    if scaling == "minmax":
        high = float(values.max(initial=0.0))
    elif scaling == "percentile":
        high = float(np.percentile(values, 99.9)) if values.size else 1.0
    else:
        raise ValueError(f"intensity scaling {scaling!r}: expected minmax or percentile")
    scaled = np.where(inside, np.clip((volume - low) / max(high - low, 1e-12), 0, 1), 0)
    return torch.from_numpy(scaled.astype(np.float32))[None, None]


def to_displacement_field(field: Tensor, grid: NetworkGrid, target: Nifti1Image) -> DisplacementField:
    """Convert a unit field on the network's grid to millimetres on another grid of the same world.

    Parameters
    ----------
    field : Tensor
        Unit field ``(1, 3, D, H, W)``.
    grid : NetworkGrid
        Grid of the field.
    target : Nifti1Image
        Image that gives the other grid. Beyond the network's grid the displacement of its border fades to zero.
    """
    voxels = unit_to_voxel(field.detach().to("cpu", torch.float32))[0].numpy()
    linear = grid.affine[:3, :3].astype(np.float32)
    world = np.tensordot(linear, voxels, axes=1)
    shape = target.shape[:3]
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    limit = np.array(grid.shape) - 1
    to_grid = np.linalg.inv(grid.affine)
    out = np.empty((3, int(np.prod(shape))), np.float32)
    slab = int(np.prod(shape[1:]))
    for x in range(shape[0]):
        positions = apply_affine(to_grid, voxel_centres(shape, target.affine, x * slab, (x + 1) * slab))
        nearest = np.clip(positions, 0, limit)
        outside = np.linalg.norm((positions - nearest) * spacing, axis=1)
        values = interpolate(world, nearest)
        out[:, x * slab : (x + 1) * slab] = values * np.clip(1 - outside / FADE_MM, 0, 1)
    return DisplacementField(out.reshape(3, *shape), np.asarray(target.affine, dtype=np.float64))
