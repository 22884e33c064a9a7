"""How good a registration is: similarity, regularity, and how far points are from where they were, there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.engines.contract import Pair, brain_only, inside
from nio_pydra.losses import lncc
from nio_pydra.metrics import regularity, round_trip_error
from nio_pydra.spatial.conform import scale_intensities
from nio_pydra.spatial.transforms import DisplacementField, Transform, apply_affine, resample

__all__ = ["quality"]

POINTS = 200_000  # at which a round trip is measured


def quality(pair: Pair, transforms: tuple[Transform, Transform], warped: Nifti1Image) -> dict[str, Any]:
    """Measure a registration inside the fixed brain.

    Parameters
    ----------
    pair : Pair
        What was registered.
    transforms : tuple of Transform
        Forward (a deformation on the fixed grid, then the affine; or the affine alone) and inverse.
    warped : Nifti1Image
        Moving image on the fixed grid.

    Returns
    -------
    dict
        ``similarity``, ``std_jacobian``, ``fold_percent`` and ``inverse_error_mm`` of the record.
    """
    brain = pair.fixed_brain
    moving, fixed = pair.moving, pair.fixed
    if np.asanyarray(moving.dataobj).min() < 0:  # its background would not be the darkest (see brain_only)
        moving = brain_only(moving, pair.moving_mask)
        warped = resample(moving, fixed, transforms[0])
    aligned = resample(moving, fixed, Transform((pair.affine,)))
    deformation = transforms[0].steps[0]
    smooth = regularity(deformation, brain) if isinstance(deformation, DisplacementField) else None
    return {
        "similarity": {
            "metric": "mean squared local cross-correlation, window 7, in the fixed brain",
            "before": _similarity(fixed, aligned, brain),
            "after": _similarity(fixed, warped, brain),
        },
        "std_jacobian": smooth.std_jacobian if smooth else 0.0,
        "fold_percent": smooth.fold_percent if smooth else 0.0,
        "inverse_error_mm": _way_back(pair, *transforms),
    }


def _similarity(fixed: Nifti1Image, warped: Nifti1Image, brain: NDArray[np.bool_]) -> float:
    volumes = [scale_intensities(np.asanyarray(image.dataobj) * brain, "percentile") for image in (fixed, warped)]
    with torch.no_grad():
        weights = torch.from_numpy(brain.astype(np.float32))[None, None]
        return -float(lncc(volumes[0], volumes[1], 7, weights))


def _way_back(pair: Pair, forward: Transform, inverse: Transform) -> dict[str, Any]:
    """Distances in mm after a round trip: from voxels of the fixed brain, from between them, and the other way."""
    rng = np.random.default_rng(0)
    fixed = _some_voxels(pair.fixed_brain)
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
    """Indices ``(N, 3)`` of voxels of a region, spread evenly."""
    voxels = np.argwhere(region)
    return voxels[:: max(1, len(voxels) // POINTS)].astype(np.float64)
