"""Quality of a registration: similarity, regularity, and errors of round trips of points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nio_pydra.engines.contract import Pair, inside
from nio_pydra.metrics import local_similarity, regularity, round_trip_error
from nio_pydra.spatial.transforms import DisplacementField, Transform, apply_affine, resample

__all__ = ["quality"]

POINTS = 200_000  # number of points of a round trip


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
        ``similarity`` (``before`` and ``after``), ``std_jacobian``, ``fold_percent`` and ``inverse_error_mm`` of the
        record. The last holds ``median`` and ``p99``, in mm, of three round trips: forward and back from ``voxels`` of
        the fixed object and from points ``between_voxels``, and from voxels of the moving object (``backward``).
    """
    foreground, fixed = pair.fixed_foreground, np.asanyarray(pair.fixed_object.dataobj)
    moving = pair.moving_object  # its background is the darkest value

    def similarity(transform: Transform) -> float:
        return local_similarity(fixed, np.asanyarray(resample(moving, pair.fixed, transform).dataobj), foreground)

    deformation = transforms[0].steps[0]
    smooth = regularity(deformation, foreground) if isinstance(deformation, DisplacementField) else None
    return {
        "similarity": {
            "metric": "mean squared local cross-correlation, window 7, inside the fixed mask",
            "before": similarity(Transform((pair.affine,))),
            "after": similarity(transforms[0]),
        },
        "std_jacobian": smooth.std_jacobian if smooth else 0.0,
        "fold_percent": smooth.fold_percent if smooth else 0.0,
        "inverse_error_mm": _round_trips(pair, *transforms),
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
