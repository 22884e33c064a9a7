"""Displacement fields that can be undone: removal of folds, and inversion."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

from nio_pydra.spatial.transforms import DisplacementField

__all__ = ["invert", "unfold"]

log = logging.getLogger("nio_pydra")

INVERSE_STEPS = 60  # most evaluations per voxel; a handful is usual
INVERSE_TOLERANCE_VOXELS = 0.01
LEAST_WEIGHT = 0.05  # of the voxels that come back by a node: what fewer miss moves it less
LEAST_DETERMINANT = 0.1  # what a repaired cell corner keeps of its volume: thinner ones have no accurate inverse
SIDE_WEIGHT = 0.139  # of a neighbour in the local average: a Gaussian of 0.55 voxels, which changes least
ROUNDS_PER_RADIUS = 20  # after so many rounds the neighbourhood that is smoothed grows by a voxel
MOST_ROUNDS = 400


def unfold(field: DisplacementField) -> DisplacementField:
    """Smooth a field where it folds, or nearly so, and nowhere else.

    A network's field may fold in places: two points of the fixed image then go to the same point, and there is no way
    back. Where one of the eight Jacobian determinants at a voxel's cell corners falls below a tenth, the displacement
    is averaged with its neighbours', again and again, until none does. A place that resists is averaged in an
    ever wider neighbourhood; if any still does after 400 rounds, a warning is logged.

    Parameters
    ----------
    field : DisplacementField
        RAS mm.

    Returns
    -------
    DisplacementField
        On the same grid. The very same object where nothing had to change.
    """
    from nio_pydra.spatial.kernels import smoothed_at

    voxels = field.in_voxels()
    slab = np.argwhere(np.ones((1, *voxels.shape[2:]), bool))
    # Slab by slab, to bound memory.
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
    """Voxels ``(M, 3)`` of a grid within a cube around any of the given ``(N, 3)``."""
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

    First exactly, at every node of the grid. But readers interpolate linearly between the nodes, which is off most
    where the field has its kinks, at its own voxels. So the voxels are sent forth and back, and each node is moved once
    by the mean of what the voxels around it miss: points come back closer, voxels above all, at the price that nodes
    sent the other way no longer return exactly. (Doing so again would serve the voxels alone.)

    Parameters
    ----------
    field : DisplacementField
        RAS mm.

    Returns
    -------
    DisplacementField
        On the same grid. Where the field folds there is no inverse, but something near it.
    """
    from nio_pydra.spatial.kernels import invert_displacement, spread_round_trip

    voxels = field.in_voxels()
    inverse = np.empty_like(voxels)
    invert_displacement(voxels, inverse, INVERSE_STEPS, INVERSE_TOLERANCE_VOXELS)
    misses, weights = np.zeros_like(inverse), np.zeros(inverse.shape[1:], np.float32)
    spread_round_trip(voxels, inverse, misses, weights)
    inverse -= misses / np.maximum(weights, LEAST_WEIGHT)
    return DisplacementField.from_voxels(inverse, field.affine)
