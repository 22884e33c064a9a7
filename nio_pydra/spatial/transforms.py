"""Maps between the world spaces of two images, and resampling through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.spatial.finite import require_finite

__all__ = ["DisplacementField", "Transform", "apply_affine", "interpolate", "resample", "voxel_centres"]

CHUNK = 2_000_000  # points per step, to limit memory


@dataclass(frozen=True)
class DisplacementField:
    """Displacements on a grid, zero beyond it, as in ITK.

    Attributes
    ----------
    vectors : ndarray
        ``(3, X, Y, Z)`` float32, RAS mm.
    affine : ndarray
        4x4, voxel to world of the grid, RAS mm.

    Raises
    ------
    ComputationError
        If a displacement is NaN or infinite, as measures of such a field would look perfect.
    """

    vectors: NDArray[np.float32]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 4 or self.vectors.shape[0] != 3:
            raise ValueError(f"vectors have shape {self.vectors.shape}: expected (3, X, Y, Z)")
        require_finite(self.vectors, "The displacement field")

    @classmethod
    def from_voxels(cls, displacements: NDArray[np.float32], affine: NDArray[np.float64]) -> DisplacementField:
        """Build a field from displacements ``(3, X, Y, Z)`` in voxels, component i along axis i of the grid."""
        linear = affine[:3, :3].astype(np.float32)
        return cls(np.ascontiguousarray(np.tensordot(linear, displacements, axes=1)), affine)

    def in_voxels(self) -> NDArray[np.float32]:
        """Return a copy of the displacements ``(3, X, Y, Z)`` in voxels, component i along axis i of the grid."""
        to_voxels = np.linalg.inv(self.affine[:3, :3]).astype(np.float32)
        return np.ascontiguousarray(np.tensordot(to_voxels, self.vectors, axes=1))

    def map_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move points ``(N, 3)``, RAS mm, by the trilinearly interpolated displacement."""
        voxels = apply_affine(np.linalg.inv(self.affine), points)
        return points + interpolate(self.vectors, voxels).T


@dataclass(frozen=True)
class Transform:
    """A chain of affines and displacement fields, applied to points from first to last.

    Attributes
    ----------
    steps : tuple of ndarray or DisplacementField
        Arrays are 4x4 matrices in RAS mm.

    Raises
    ------
    ComputationError
        If a number of a matrix is NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> shift, double = np.eye(4), np.diag([2, 2, 2, 1])
    >>> shift[0, 3] = 5
    >>> Transform((shift, double)).map_points(np.zeros((1, 3)))
    array([[10.,  0.,  0.]])
    """

    steps: tuple[NDArray[np.floating] | DisplacementField, ...]

    def __post_init__(self) -> None:
        for step in self.steps:
            if not isinstance(step, DisplacementField):
                require_finite(step, "The affine")

    def map_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points ``(N, 3)``, RAS mm."""
        for step in self.steps:
            points = step.map_points(points) if isinstance(step, DisplacementField) else apply_affine(step, points)
        return points


def apply_affine(matrix: NDArray[np.floating], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply a 4x4 matrix to points ``(N, 3)``."""
    from nio_pydra.spatial.kernels import affine_points

    out = np.empty((len(points), 3))
    affine_points(np.asarray(matrix, dtype=np.float64), np.asarray(points, dtype=np.float64), out)
    return out


def voxel_centres(shape: tuple[int, ...], affine: NDArray[np.float64], start: int, stop: int) -> NDArray[np.float64]:
    """Return the world positions ``(N, 3)`` of the voxels from `start` to `stop`, counted in C order."""
    indices = np.stack(np.unravel_index(np.arange(start, stop), shape), axis=1)
    return apply_affine(affine, indices.astype(np.float64))


def interpolate(
    volumes: NDArray[np.generic], voxels: NDArray[np.float64], mode: Literal["linear", "nearest"] = "linear"
) -> NDArray[np.float64]:
    """Sample volumes at voxel positions as ITK does: clamped within half a voxel of the border, zero beyond.

    Parameters
    ----------
    volumes : ndarray
        ``(C, X, Y, Z)``.
    voxels : ndarray
        ``(N, 3)`` positions in voxels.
    mode : {"linear", "nearest"}
        Trilinear, or the nearest voxel's value.

    Returns
    -------
    ndarray
        ``(C, N)`` float64.
    """
    if mode == "nearest":
        size = np.array(volumes.shape[1:])
        inside = ((voxels >= -0.5) & (voxels <= size - 0.5)).all(axis=1)
        nearest = np.clip(np.floor(voxels + 0.5).astype(np.int64), 0, size - 1)
        return volumes[:, nearest[:, 0], nearest[:, 1], nearest[:, 2]].astype(np.float64) * inside
    from nio_pydra.spatial.kernels import sample_linear

    out = np.empty((len(volumes), len(voxels)))
    sample_linear(np.ascontiguousarray(volumes), np.ascontiguousarray(voxels, dtype=np.float64), out)
    return out


def resample(
    image: Nifti1Image,
    reference: Nifti1Image,
    transform: Transform,
    interpolation: Literal["linear", "nearest"] = "linear",
) -> Nifti1Image:
    """Resample an image onto a reference grid in one interpolation.

    Parameters
    ----------
    image : Nifti1Image
        ``(X, Y, Z)``.
    reference : Nifti1Image
        Image that gives shape and affine.
    transform : Transform
        Maps points of the REFERENCE to points of the image, RAS mm (ITK's and ANTs' direction).
    interpolation : {"linear", "nearest"}
        Use "nearest" for labels.

    Returns
    -------
    Nifti1Image
        float32 for "linear", the image's own dtype for "nearest".
    """
    dtype = np.dtype(np.float32) if interpolation == "linear" else image.get_data_dtype()
    volume = np.asanyarray(image.dataobj)[None]
    to_voxels = np.linalg.inv(image.affine)
    shape = reference.shape[:3]
    total = int(np.prod(shape))
    out = np.empty(total, dtype)
    for start in range(0, total, CHUNK):
        stop = min(start + CHUNK, total)
        points = transform.map_points(voxel_centres(shape, reference.affine, start, stop))
        out[start:stop] = interpolate(volume, apply_affine(to_voxels, points), interpolation)[0]
    return nib.nifti1.Nifti1Image(out.reshape(shape), reference.affine)
