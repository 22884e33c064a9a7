"""Smoothness and invertibility of displacement fields."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nio_pydra.spatial.transforms import DisplacementField, Transform

__all__ = ["Regularity", "jacobian_determinant", "regularity", "round_trip_error", "volume_factor"]


@dataclass(frozen=True)
class Regularity:
    """Summary of the Jacobian determinants in a region.

    Attributes
    ----------
    std_jacobian : float
        Standard deviation of the determinants.
    fold_percent : float
        Share of voxels whose determinant is zero or negative, in percent.
    jacobian_p1, jacobian_p99 : float
        1st and 99th percentile of the determinants.
    """

    std_jacobian: float
    fold_percent: float
    jacobian_p1: float
    jacobian_p99: float


def jacobian_determinant(field: DisplacementField) -> NDArray[np.float32]:
    """Return the determinant of the derivative of ``x -> x + u(x)`` at every voxel, by central differences.

    Returns
    -------
    ndarray
        ``(X, Y, Z)`` float32; 1 where the volume does not change, whatever the voxel size.
    """
    voxels = field.in_voxels()
    # Row i, column j: derivative of component i along voxel axis j.
    j = [[np.gradient(voxels[i], axis=a) + np.float32(i == a) for a in range(3)] for i in range(3)]
    return (
        j[0][0] * (j[1][1] * j[2][2] - j[1][2] * j[2][1])
        - j[0][1] * (j[1][0] * j[2][2] - j[1][2] * j[2][0])
        + j[0][2] * (j[1][0] * j[2][1] - j[1][1] * j[2][0])
    )


def volume_factor(transform: Transform, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return by which factor a transform changes the volume around every voxel of a grid: its Jacobian determinant.

    Parameters
    ----------
    transform : Transform
        Affines, and at most one displacement field. The field comes first and lies on the grid.
    shape : tuple of int
        ``(X, Y, Z)``.

    Returns
    -------
    ndarray
        ``(X, Y, Z)`` float32: that of :func:`jacobian_determinant`, times the determinants of the affines.
    """
    factor = np.ones(shape, np.float32)
    for place, step in enumerate(transform.steps):
        if not isinstance(step, DisplacementField):
            factor *= np.float32(np.linalg.det(np.asarray(step, float)[:3, :3]))
        elif place == 0 and step.vectors.shape[1:] == tuple(shape):
            factor *= jacobian_determinant(step)
        else:
            raise ValueError("a field must be the first step, on the grid on which the determinants are wanted")
    return factor


def regularity(field: DisplacementField, region: NDArray[np.bool_]) -> Regularity:
    """Summarise the Jacobian determinants of a field inside a region of its grid, ``(X, Y, Z)``."""
    values = jacobian_determinant(field)[region]
    low, high = np.percentile(values, (1, 99))
    return Regularity(float(values.std(dtype=np.float64)), float(100 * (values <= 0).mean()), float(low), float(high))


def round_trip_error(first: Transform, second: Transform, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distances between points and their positions after two transforms.

    Parameters
    ----------
    first, second : Transform
        RAS mm, in order of application.
    points : ndarray
        ``(N, 3)``, RAS mm.

    Returns
    -------
    ndarray
        ``(N,)``, mm.
    """
    return np.linalg.norm(second.map_points(first.map_points(points)) - points, axis=1)
