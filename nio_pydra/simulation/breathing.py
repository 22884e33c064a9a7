"""Simulated expiration: a scan at inspiration, deformed by the motion of landmarks that observers found in real lungs.

The landmarks give the motion in one to three places per cubic inch of lung; a thin-plate spline joins them. The map is
known everywhere, so the true error of a registration can be measured. It leads from expiration to inspiration, the
direction in which the scan is resampled: the truth then needs no inversion, which would have an error of its own. As in
`nio_pydra.simulation.subject`, the geometry uses SciPy and shares no code with `nio_pydra.spatial`.

What is not as in a patient: the lung does not slide along the chest wall, because a smooth map cannot; and both scans
have the same vessels, down to the voxel, under independent noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import distance_transform_edt, map_coordinates, spline_filter

__all__ = ["BreathingMap", "expiration", "fit_breathing", "into_box"]

GRID_MM = 8.0
"""Distance of the points at which the displacement is stored."""
SMOOTHINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Tried in this order, for coordinates in units of `UNIT_MM`: the first that does not squeeze too much is kept."""
UNIT_MM = 100.0
SMALLEST_JACOBIAN = 0.1
"""Smallest accepted Jacobian determinant anywhere; below zero the map folds."""
AERATED_HU, SOLID_HU = -600.0, -200.0
"""Up to the first, lung loses air and becomes denser in full; from the second on, not at all."""
FULL_MM, STILL_MM = 10.0, 70.0
"""Distances from the lung up to which the motion is as fitted, and from which there is none."""


@dataclass(frozen=True)
class BreathingMap:
    """Known map from the expiration to the inspiration.

    Attributes
    ----------
    coefficients : ndarray
        ``(3, X, Y, Z)`` coefficients of the cubic spline of the displacement, RAS mm; mirrored beyond the grid.
    origin, spacing : ndarray
        ``(3,)`` first point of their grid and distances of its points along R, A, S, mm.
    smoothing : float
        The one of `SMOOTHINGS` that was chosen.
    """

    coefficients: NDArray[np.float64]
    origin: NDArray[np.float64]
    spacing: NDArray[np.float64]
    smoothing: float

    def map_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points of the expiration ``(N, 3)``, RAS mm, to the inspiration."""
        places = ((points - self.origin) / self.spacing).T
        shifts = [map_coordinates(own, places, order=3, mode="mirror", prefilter=False) for own in self.coefficients]
        return points + np.stack(shifts, axis=1)

    def jacobian(self, points: NDArray[np.float64], step: float = 0.5) -> NDArray[np.float64]:
        """Return the volume at inspiration over that at expiration at points of the expiration, ``(N,)``."""
        columns = [
            (self.map_points(points + shift) - self.map_points(points - shift)) / (2 * step)
            for shift in step * np.eye(3)
        ]
        return np.linalg.det(np.stack(columns, axis=2))


def into_box(
    points: NDArray[np.float64], source: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Shift and scale points ``(N, 3)`` along each axis, so that one box becomes another; boxes are ``(2, 3)``."""
    return (points - source[0]) * ((target[1] - target[0]) / (source[1] - source[0])) + target[0]


def fit_breathing(
    expired: NDArray[np.float64],
    inspired: NDArray[np.float64],
    still: NDArray[np.float64],
    lung: nib.Nifti1Image,
) -> BreathingMap:
    """Fit a smooth map without folds to the motion of landmarks.

    Parameters
    ----------
    expired, inspired : ndarray
        Landmarks at expiration and at inspiration, ``(N, 3)``, RAS mm.
    still : ndarray
        Points that must not move, as on the ribs, ``(M, 3)``, RAS mm.
    lung : Nifti1Image
        Mask of the lung at inspiration, axes along those of the world. Motion fades to zero outside it.

    Raises
    ------
    ValueError
        If even the smoothest map squeezes some place to less than `SMALLEST_JACOBIAN` of its volume.
    """
    corners = nib.affines.apply_affine(lung.affine, np.array([[0, 0, 0], np.array(lung.shape) - 1]))
    low, high = corners.min(axis=0), corners.max(axis=0)
    shape = np.ceil((high - low) / GRID_MM).astype(int) + 1
    axes = [low[i] + GRID_MM * np.arange(shape[i]) for i in range(3)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    distance = distance_transform_edt(
        np.asanyarray(lung.dataobj) == 0, sampling=np.abs(np.linalg.norm(lung.affine[:3, :3], axis=0))
    )
    voxels = nib.affines.apply_affine(np.linalg.inv(lung.affine), grid).T
    far = map_coordinates(distance, voxels, order=1, mode="nearest")
    fade = np.clip((STILL_MM - far) / (STILL_MM - FULL_MM), 0, 1)
    fade = fade**2 * (3 - 2 * fade)
    moving = fade > 0
    knots = np.concatenate([expired, still]) / UNIT_MM
    motion = np.concatenate([inspired - expired, np.zeros_like(still)])
    inner = grid[moving]
    for smoothing in SMOOTHINGS:
        spline = RBFInterpolator(knots, motion, kernel="thin_plate_spline", smoothing=smoothing)
        shifts = np.zeros_like(grid)
        shifts[moving] = spline(inner / UNIT_MM) * fade[moving, None]
        fields = np.moveaxis(shifts.reshape(*shape, 3), -1, 0)
        found = BreathingMap(
            np.stack([spline_filter(own, order=3, mode="mirror") for own in fields]),
            low, np.full(3, GRID_MM), smoothing,
        )  # fmt: skip
        if found.jacobian(inner).min() >= SMALLEST_JACOBIAN:
            return found
    raise ValueError("the landmarks fold the map even when it is as smooth as can be")


def expiration(
    scan: nib.Nifti1Image, lung: nib.Nifti1Image, breathing: BreathingMap, noise: float, rng: np.random.Generator
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Make the scan at expiration, on the grid of the scan at inspiration.

    The lung becomes denser where it becomes smaller, because its tissue stays and its air leaves: its density
    (HU + 1000) is multiplied by the Jacobian determinant of the map, volume at inspiration over volume at expiration.
    Vessels and nodules hold no air, so they keep their density.

    Parameters
    ----------
    scan : Nifti1Image
        CT at inspiration, Hounsfield units.
    lung : Nifti1Image
        Its lung mask.
    breathing : BreathingMap
    noise : float
        Standard deviation of the noise that is added, in HU.
    rng : Generator

    Returns
    -------
    tuple of Nifti1Image
        The scan at expiration (float32) and its lung mask (uint8).
    """
    points = nib.affines.apply_affine(scan.affine, np.indices(scan.shape).reshape(3, -1).T.astype(float))
    places = nib.affines.apply_affine(np.linalg.inv(scan.affine), breathing.map_points(points)).T
    values = map_coordinates(scan.get_fdata(dtype=np.float32), places, order=3, mode="nearest")
    inside = map_coordinates(np.asanyarray(lung.dataobj).astype(np.float32), places, order=1, mode="nearest") > 0.5
    own = values[inside]
    aerated = np.clip((SOLID_HU - own) / (SOLID_HU - AERATED_HU), 0, 1)
    values[inside] = (own + 1000) * (1 + aerated * (breathing.jacobian(points[inside]) - 1)) - 1000
    values = np.clip(values + rng.normal(0, noise, values.shape), -1024, None)
    made = nib.Nifti1Image(values.reshape(scan.shape).astype(np.float32), scan.affine)
    return made, nib.Nifti1Image(inside.reshape(scan.shape).astype(np.uint8), scan.affine)
