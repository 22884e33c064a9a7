"""Target registration error: distances between landmarks that a registration should bring together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.spatial.transforms import Transform, apply_affine

__all__ = ["CLOSE_MM", "TargetRegistrationError", "landmark_errors"]

CLOSE_MM = 1.2
"""Error below which the NIO paper counts a landmark as met."""


@dataclass(frozen=True)
class TargetRegistrationError:
    """Distances between the landmarks of a moving image and those of the fixed image, mapped to it.

    Attributes
    ----------
    errors : ndarray
        ``(N,)`` distances in mm.
    snapped : ndarray
        The same after the mapped landmarks were moved to the nearest voxel of the moving image, as DIR-Lab measures.
    """

    errors: NDArray[np.float64]
    snapped: NDArray[np.float64]

    def as_record(self) -> dict[str, Any]:
        """Return the numbers for a record, in mm.

        Returns
        -------
        dict
            ``count``; ``mean``, ``sd`` (over the landmarks, divided by their number), ``median`` and ``p95`` (95th
            percentile); ``below_1.2mm``, the share of landmarks with a smaller error; ``errors``, one number for each
            landmark. ``snapped`` holds the same, without ``count``, for errors between voxels.
        """
        return {"count": len(self.errors), **_summary(self.errors), "snapped": _summary(self.snapped)}


def landmark_errors(
    fixed_points: NDArray[np.float64],
    moving_points: NDArray[np.float64],
    transform: Transform,
    moving_image: Nifti1Image,
) -> TargetRegistrationError:
    """Push fixed landmarks through a transform and measure how far they come out from the moving ones.

    Parameters
    ----------
    fixed_points, moving_points : ndarray
        Corresponding landmarks, ``(N, 3)``, RAS mm.
    transform : Transform
        Maps points of the fixed image to points of the moving one, RAS mm. ``Transform(())`` gives the errors before
        the registration.
    moving_image : Nifti1Image
        Grid that mapped landmarks are snapped to.

    Returns
    -------
    TargetRegistrationError

    Raises
    ------
    ValueError
        If the numbers of landmarks differ, or there are none.

    References
    ----------
    Castillo et al. 2009, A framework for evaluation of deformable image registration spatial accuracy using large
    landmark point sets. Physics in Medicine & Biology 54(7).

    Examples
    --------
    >>> import numpy as np
    >>> moving_image = Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4))
    >>> found = landmark_errors(np.array([[1.0, 1, 1]]), np.array([[1.0, 3, 1]]), Transform(()), moving_image)
    >>> found.errors
    array([2.])
    """
    if fixed_points.shape != moving_points.shape or not len(fixed_points):
        raise ValueError(f"landmarks have shapes {fixed_points.shape} and {moving_points.shape}: expected (N, 3) twice")
    mapped = transform.map_points(fixed_points)
    voxels = np.rint(apply_affine(np.linalg.inv(moving_image.affine), mapped))
    snapped = apply_affine(moving_image.affine, voxels)
    return TargetRegistrationError(
        np.linalg.norm(mapped - moving_points, axis=1), np.linalg.norm(snapped - moving_points, axis=1)
    )


def _summary(errors: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "mean": float(errors.mean()),
        "sd": float(errors.std()),
        "median": float(np.median(errors)),
        "p95": float(np.percentile(errors, 95)),
        f"below_{CLOSE_MM}mm": float((errors < CLOSE_MM).mean()),
        "errors": [round(float(error), 4) for error in errors],
    }
