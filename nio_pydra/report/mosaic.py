"""Slices of an object in three directions, side by side: where their pixels lie, and what images show there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from nio_pydra.spatial.transforms import Transform, apply_affine, interpolate

__all__ = ["Mosaic", "mosaic_around"]

SLICES = 7
"""In each direction, evenly spread over the object."""
CELL = 200
"""Pixels of the longest side of a slice."""
MARGIN = 0.04
"""Around the object, as a share of its longest side."""
VIEWS = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
"""Axes of the rows of slices, of right, anterior and superior: across, up, and from slice to slice."""
STILL = Transform(())


@dataclass(frozen=True)
class Mosaic:
    """Pixels of a picture of slices.

    Attributes
    ----------
    points : ndarray
        ``(N, 3)`` RAS mm: positions of the pixels that belong to a slice.
    filled : ndarray of bool
        ``(rows, columns)``: the pixels that belong to a slice.
    """

    points: NDArray[np.float64]
    filled: NDArray[np.bool_]

    def sample(
        self, image: nib.Nifti1Image, transform: Transform = STILL, mode: Literal["linear", "nearest"] = "linear"
    ) -> NDArray[np.float32]:
        """Return what an image shows at the pixels.

        Parameters
        ----------
        image : Nifti1Image
            ``(X, Y, Z)``, on any grid.
        transform : Transform
            From the space of the mosaic to that of the image, RAS mm.
        mode : {"linear", "nearest"}
            Use "nearest" for labels.

        Returns
        -------
        ndarray
            ``(rows, columns)`` float32, zero between slices and outside the image.
        """
        volume = np.asanyarray(image.dataobj)
        voxels = apply_affine(np.linalg.inv(image.affine), transform.map_points(self.points))
        shown = np.zeros(self.filled.shape, np.float32)
        shown[self.filled] = interpolate(volume.astype(np.float32)[None], voxels, mode)[0]
        return shown


def mosaic_around(mask: nib.Nifti1Image) -> Mosaic:
    """Return rows of axial, coronal and sagittal slices around an object, along the axes of its grid.

    Right is on the right; anterior, else superior, is up. Pixels are as wide as high in mm, whatever the voxels are.

    Parameters
    ----------
    mask : Nifti1Image
        ``(X, Y, Z)``, not zero in the object. An empty mask stands for the whole grid.
    """
    canonical = nib.as_closest_canonical(mask)
    object_ = np.asanyarray(canonical.dataobj) != 0
    voxels = np.argwhere(object_) if object_.any() else np.array([[0, 0, 0], np.array(object_.shape) - 1])
    spacing = np.linalg.norm(canonical.affine[:3, :3], axis=0)
    low, high = (voxels.min(axis=0) - 0.5) * spacing, (voxels.max(axis=0) + 0.5) * spacing
    margin = MARGIN * (high - low).max()
    low, high = low - margin, high + margin
    pixel = (high - low).max() / CELL
    size = np.maximum(1, np.round((high - low) / pixel).astype(int))
    width = max(size[across] for across, _, _ in VIEWS)
    positions = np.full((sum(size[up] for _, up, _ in VIEWS), SLICES * width, 3), np.nan)
    top = 0
    for across, up, normal in VIEWS:
        for number in range(SLICES):
            left = number * width + (width - size[across]) // 2
            cell = positions[top : top + size[up], left : left + size[across]]
            cell[..., across] = low[across] + (np.arange(size[across]) + 0.5) * pixel
            cell[..., up] = (high[up] - (np.arange(size[up]) + 0.5) * pixel)[:, None]
            cell[..., normal] = low[normal] + (number + 1) / (SLICES + 1) * (high[normal] - low[normal])
        top += size[up]
    filled = np.isfinite(positions[..., 0])
    return Mosaic(apply_affine(canonical.affine, positions[filled] / spacing), filled)
