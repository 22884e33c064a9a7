"""Quality of a registration: similarity, overlap of masks, regularity, the affine, and errors of round trips."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.engines.contract import Pair, inside
from nio_pydra.metrics import Regularity, dice, local_similarity, regularity, round_trip_error
from nio_pydra.spatial.transforms import DisplacementField, Transform, apply_affine, resample

__all__ = ["quality"]

POINTS = 200_000  # number of points of a round trip
UNCHANGED = Regularity(std_jacobian=0.0, fold_percent=0.0, jacobian_p1=1.0, jacobian_p99=1.0)
"""Regularity of an affine without a deformation."""


def quality(pair: Pair, transforms: tuple[Transform, Transform]) -> dict[str, Any]:
    """Measure a registration inside the fixed object.

    Parameters
    ----------
    pair : Pair
        Registered pair.
    transforms : tuple of Transform
        Forward (a deformation on the fixed grid, then the affine; or the affine alone) and inverse.

    Returns
    -------
    dict
        Entries of the record. ``similarity`` holds ``before`` and ``after``. ``mask_overlap`` is the Dice of the fixed
        object and the registered moving one. ``mask_empty_percent`` is the share of the moving object that holds the
        darkest value of its image: next to none in a good mask, more in one of another person. Regularity of the
        deformation without the affine: ``std_jacobian``, ``fold_percent``, ``jacobian_p1`` and ``jacobian_p99``.
        ``affine`` holds its ``scales``, from the smallest to the largest, and ``turn_degrees``, the angle of its
        rotation. ``inverse_error_mm`` holds ``median`` and ``p99`` of three round trips: forward and back from
        ``voxels`` of the fixed object and from points ``between_voxels``, and from voxels of the moving object
        (``backward``).
    """
    foreground, fixed = pair.fixed_foreground, np.asanyarray(pair.fixed_object.dataobj)
    moving = pair.moving_object  # its background is the darkest value

    def similarity(transform: Transform) -> float:
        return local_similarity(fixed, np.asanyarray(resample(moving, pair.fixed, transform).dataobj), foreground)

    deformation = transforms[0].steps[0]
    smooth = regularity(deformation, foreground) if isinstance(deformation, DisplacementField) else UNCHANGED
    return {
        "similarity": {
            "metric": "mean squared local cross-correlation, window 7, inside the fixed mask",
            "before": similarity(Transform((pair.affine,))),
            "after": similarity(transforms[0]),
        },
        "mask_overlap": _mask_overlap(pair, transforms[0]),
        "mask_empty_percent": _mask_empty_percent(pair),
        **asdict(smooth),
        "affine": _affine_measures(pair.affine),
        "inverse_error_mm": _round_trips(pair, *transforms),
    }


def _mask_overlap(pair: Pair, forward: Transform) -> float:
    """Return the Dice of the fixed object and the registered moving object."""
    mask = Nifti1Image(inside(pair.moving, pair.moving_mask).astype(np.uint8), pair.moving.affine)
    moved = np.asanyarray(resample(mask, pair.fixed, forward, "nearest").dataobj)
    return dice(pair.fixed_foreground.astype(np.uint8), moved, expected={1})[1]


def _mask_empty_percent(pair: Pair) -> float:
    """Return the share of the moving object that holds the darkest value of its image, in percent."""
    voxels = np.asanyarray(pair.moving.dataobj)
    return float(100 * (voxels[inside(pair.moving, pair.moving_mask)] == voxels.min()).mean())


def _affine_measures(affine: NDArray[np.floating]) -> dict[str, Any]:
    """Return the scales of an affine, from the smallest to the largest, and the angle of its rotation in degrees."""
    left, scales, right = np.linalg.svd(np.asarray(affine, float)[:3, :3])
    cosine = (np.trace(left @ right) - 1) / 2
    return {
        "scales": sorted(float(scale) for scale in scales),
        "turn_degrees": float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
    }


def _round_trips(pair: Pair, forward: Transform, inverse: Transform) -> dict[str, Any]:
    """Return the median and 99th percentile of the errors of three round trips, in mm."""
    rng = np.random.default_rng(0)
    fixed = _some_voxels(pair.fixed_foreground)
    between = fixed + rng.uniform(-0.5, 0.5, fixed.shape)
    moving = _some_voxels(inside(pair.moving, pair.moving_mask))
    trips = {
        "voxels": (forward, inverse, apply_affine(pair.fixed.affine, fixed)),
        "between_voxels": (forward, inverse, apply_affine(pair.fixed.affine, between)),
        "backward": (inverse, forward, apply_affine(pair.moving.affine, moving)),
    }
    errors = {name: round_trip_error(*trip) for name, trip in trips.items()}
    return {
        name: {"median": float(np.median(values)), "p99": float(np.percentile(values, 99))}
        for name, values in errors.items()
    }


def _some_voxels(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return indices ``(N, 3)`` of evenly spread voxels of a region."""
    voxels = np.argwhere(region)
    return voxels[:: max(1, len(voxels) // POINTS)].astype(np.float64)
