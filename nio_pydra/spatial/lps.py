"""Conversion between the world coordinates of ITK (LPS mm) and of nibabel and this package (RAS mm)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nio_pydra.spatial.transforms import DisplacementField

__all__ = ["affine_from_itk", "field_from_itk", "itk_geometry", "itk_vectors", "swap_ras_lps"]

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
SIGNS = np.array([-1, -1, 1], np.float32)


def swap_ras_lps(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """Convert a 4x4 map between worlds from RAS mm to LPS mm, or from LPS mm to RAS mm."""
    return FLIP @ matrix @ FLIP


def itk_geometry(
    affine: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the spacing, origin and direction of a grid, in the terms of ITK.

    Parameters
    ----------
    affine : ndarray
        4x4, voxel to world, RAS mm.

    Returns
    -------
    spacing : ndarray
        ``(3,)`` voxel sizes in mm.
    origin : ndarray
        ``(3,)`` position of the first voxel, LPS mm.
    direction : ndarray
        ``(3, 3)``; column i is the direction of voxel axis i in LPS, a vector of length 1.

    Examples
    --------
    >>> import numpy as np
    >>> spacing, origin, direction = itk_geometry(np.array([[0, 0, 2, 9], [1, 0, 0, 8], [0, 3, 0, 7], [0, 0, 0, 1]]))
    >>> spacing.tolist(), origin.tolist()
    ([1.0, 3.0, 2.0], [-9.0, -8.0, 7.0])
    """
    flipped = FLIP @ affine
    spacing = np.linalg.norm(flipped[:3, :3], axis=0)
    return spacing, flipped[:3, 3], flipped[:3, :3] / spacing


def affine_from_itk(
    spacing: NDArray[np.float64], origin: NDArray[np.float64], direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the voxel-to-world matrix in RAS mm, the inverse of :func:`itk_geometry`."""
    flipped = np.eye(4)
    flipped[:3, :3] = direction * spacing
    flipped[:3, 3] = origin
    return FLIP @ flipped


def itk_vectors(field: DisplacementField) -> NDArray[np.float32]:
    """Return the displacements ``(X, Y, Z, 3)`` in LPS mm."""
    return np.moveaxis(field.vectors, 0, -1) * SIGNS


def field_from_itk(vectors: NDArray[np.floating], affine: NDArray[np.float64]) -> DisplacementField:
    """Build a field from displacements of ITK.

    Parameters
    ----------
    vectors : ndarray
        ``(X, Y, Z, 3)``, LPS mm.
    affine : ndarray
        4x4, voxel to world of their grid, RAS mm. If it is the grid of an image, give the image's own affine, as one
        from a file of ITK has lost digits.
    """
    flipped = np.array(np.moveaxis(vectors, -1, 0), np.float32, order="C")
    flipped *= SIGNS[:, None, None, None]
    return DisplacementField(flipped, affine)
