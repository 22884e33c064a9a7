"""Removal of folds from displacement fields, and inversion."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

from nio_pydra.spatial.transforms import DisplacementField

__all__ = ["invert", "unfold"]

log = logging.getLogger("nio_pydra")

INVERSE_STEPS = 60  # maximum of evaluations per voxel; a few are usual
INVERSE_TOLERANCE_VOXELS = 0.01
LEAST_WEIGHT = 0.05  # divisor for a node with a smaller total weight of voxels, so that its correction is small
LEAST_DETERMINANT = 0.1  # smallest determinant at a cell corner; smaller ones have no accurate inverse
SIDE_WEIGHT = 0.139  # weight of a neighbour in the local average: a Gaussian of 0.55 voxels, which changes least
ROUNDS_PER_RADIUS = 20  # rounds after which the smoothed neighbourhood grows by a voxel
MOST_ROUNDS = 400


def unfold(field: DisplacementField) -> DisplacementField:
    """Smooth a field only where it folds or nearly folds.

    Where a network's field folds, two points of the fixed image go to the same point, and there is no inverse. A voxel
    is smoothed if one of the eight Jacobian determinants at its cell corners is below 0.1. Its displacement is averaged
    with those of its neighbours until no such voxel is left. The smoothed neighbourhood grows with the number of
    rounds. If voxels are left after 400 rounds, a warning is logged.

    Parameters
    ----------
    field : DisplacementField
        RAS mm.

    Returns
    -------
    DisplacementField
        Field on the same grid; the same object if nothing had to change.
    """
    from nio_pydra.spatial.kernels import smoothed_at

    voxels = field.in_voxels()
    slab = np.argwhere(np.ones((1, *voxels.shape[2:]), bool))
    # One slab at a time, to limit memory.
    folded = np.concatenate([_folded_among(voxels, slab + np.array([x, 0, 0])) for x in range(voxels.shape[1])])
    if not len(folded):
        return field
    for done in range(MOST_ROUNDS):
        changed = _neighbourhood(folded, done // ROUNDS_PER_RADIUS, voxels.shape[1:])
        averages = np.empty((len(changed), 3), np.float32)
        smoothed_at(voxels, changed, SIDE_WEIGHT, averages)
        voxels[:, changed[:, 0], changed[:, 1], changed[:, 2]] = averages.T
        folded = _folded_among(voxels, _neighbourhood(changed, 1, voxels.shape[1:]))
        if not len(folded):
            break
    else:
        log.warning("the field still folds at %d voxels: its inverse is not exact there", len(folded))
    return DisplacementField.from_voxels(voxels, field.affine)


def _folded_among(displacement: NDArray[np.float32], voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    from nio_pydra.spatial.kernels import smallest_determinants

    smallest = np.empty(len(voxels), np.float32)
    smallest_determinants(displacement, voxels, smallest)
    return voxels[smallest < LEAST_DETERMINANT]


def _neighbourhood(voxels: NDArray[np.int64], radius: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the voxels ``(M, 3)`` of a grid that lie in a cube around one of the given voxels ``(N, 3)``."""
    if radius == 0 or not len(voxels):
        return voxels
    first = np.maximum(voxels.min(axis=0) - radius, 0)
    last = np.minimum(voxels.max(axis=0) + radius, np.array(shape) - 1)
    near = np.zeros(last - first + 1, bool)
    near[tuple((voxels - first).T)] = True
    for axis in range(3):
        near = maximum_filter1d(near, 2 * radius + 1, axis=axis, mode="constant")
    return np.argwhere(near) + first


def invert(field: DisplacementField) -> DisplacementField:
    """Invert ``x -> x + u(x)`` on the field's own grid.

    The inverse is first exact at every node of the grid. Programs interpolate it linearly between the nodes, which is
    least accurate where the field has kinks, at the images of its own voxels. So all voxels are mapped forward and
    back, and each node is corrected once by the mean round-trip error of the voxels around it. This brings points, and
    most of all voxels, closer to their start. But points mapped by the inverse first no longer return exactly. A second
    correction would only help the voxels.

    Parameters
    ----------
    field : DisplacementField
        RAS mm.

    Returns
    -------
    DisplacementField
        Inverse on the same grid. Where the field folds, it is only an approximation.
    """
    from nio_pydra.spatial.kernels import invert_displacement, spread_round_trip

    voxels = field.in_voxels()
    inverse = np.empty_like(voxels)
    invert_displacement(voxels, inverse, INVERSE_STEPS, INVERSE_TOLERANCE_VOXELS)
    errors, weights = np.zeros_like(inverse), np.zeros(inverse.shape[1:], np.float32)
    spread_round_trip(voxels, inverse, errors, weights)
    inverse -= errors / np.maximum(weights, LEAST_WEIGHT)
    return DisplacementField.from_voxels(inverse, field.affine)
