"""Simulated subjects: the atlas seen through a known deformation, another head position and another scanner.

The deformation is known everywhere. So the true error of a registration can be measured in mm, which real scans do not
allow. The geometry here uses SciPy and shares no code with `nio_pydra.spatial`, so that a mistake there is not made
here as well.

A simulated subject is easier than a real one, because it has exactly the atlas's folds. It does not show how well
different anatomies are aligned.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

__all__ = ["TISSUES", "Appearance", "Template", "TrueMap", "mni152", "random_map", "scan"]

TISSUES = {1: "GM", 2: "WM", 3: "CSF"}  # the indices that BIDS proposes

VELOCITY_SPACING = 4.0  # mm
# Width (mm, standard deviation of the smoothing) and size (mm, root mean square of each component) of the
# random velocities. The first moves whole lobes, the second single gyri.
VELOCITY_SCALES = ((18.0, 3.3), (9.0, 1.8))
INTEGRATION_STEPS = 4
MAX_SHIFT = 30.0  # mm; points further from the brain are in no simulated scan


@dataclass(frozen=True)
class Template:
    """A skull-stripped head to make subjects from.

    Attributes
    ----------
    image : Nifti1Image
        ``(X, Y, Z)``, intensities in [0, 1], 0 outside the brain.
    labels : Nifti1Image
        Tissue labels (`TISSUES`) on the same grid, 0 outside the brain.
    """

    image: nib.Nifti1Image
    labels: nib.Nifti1Image


@dataclass(frozen=True)
class TrueMap:
    """Known map from atlas to subject: the flow of a velocity field, then a linear map.

    Attributes
    ----------
    velocity : ndarray
        ``(3, X, Y, Z)`` stationary velocity in atlas space, RAS mm per unit time; constant beyond its grid.
    origin : ndarray
        ``(3,)`` position of the velocity's first voxel, RAS mm. Its voxels are `VELOCITY_SPACING` mm along R, A, S.
    linear : ndarray
        4x4, head position and size: atlas world to subject world, RAS mm.
    """

    velocity: NDArray[np.float64]
    origin: NDArray[np.float64]
    linear: NDArray[np.float64]

    def map_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map atlas points ``(N, 3)``, RAS mm, to the subject."""
        return _apply(self.linear, self._flow(points, 1.0))

    def map_points_back(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map subject points ``(N, 3)``, RAS mm, to the atlas, the inverse of `map_points`."""
        return self._flow(_apply(np.linalg.inv(self.linear), points), -1.0)

    def _flow(self, points: NDArray[np.float64], sign: float) -> NDArray[np.float64]:
        """Follow the velocity for one unit of time (Runge-Kutta of order 4), in voxels of its grid."""
        step = sign / INTEGRATION_STEPS / VELOCITY_SPACING
        voxels = np.ascontiguousarray((points - self.origin).T / VELOCITY_SPACING)
        for _ in range(INTEGRATION_STEPS):
            first = self._velocity_at(voxels)
            second = self._velocity_at(voxels + step / 2 * first)
            third = self._velocity_at(voxels + step / 2 * second)
            fourth = self._velocity_at(voxels + step * third)
            voxels += step / 6 * (first + 2 * second + 2 * third + fourth)
        return voxels.T * VELOCITY_SPACING + self.origin

    def _velocity_at(self, voxels: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([map_coordinates(v, voxels, order=1, mode="nearest") for v in self.velocity])


@dataclass(frozen=True)
class Appearance:
    """Appearance of a simulated scan.

    Attributes
    ----------
    contrast : float
        Exponent of the intensities. Above 1 it makes grey matter darker relative to white matter, below 1 brighter.
    bias : float
        Standard deviation of the logarithm of the smooth intensity inhomogeneity.
    noise : float
        Standard deviation of the (Rician) noise, as a fraction of the brightest tissue.
    orientation : str
        Directions of the voxel axes, e.g. "RAS" or "LPS".
    spacing : float
        Edge of the cubic voxels in mm.
    """

    contrast: float = 1.0
    bias: float = 0.15
    noise: float = 0.04
    orientation: str = "RAS"
    spacing: float = 2.0


def mni152(resolution: int = 1) -> Template:
    """Load the MNI152 template (ICBM 2009a, symmetric) that is part of nilearn, with its tissues.

    Parameters
    ----------
    resolution : int
        Edge of the voxels in mm.
    """
    from nilearn import datasets

    image = datasets.load_mni152_template(resolution=resolution)
    brain = np.asarray(datasets.load_mni152_brain_mask(resolution=resolution).dataobj) > 0
    grey = datasets.load_mni152_gm_template(resolution=resolution).get_fdata()
    white = datasets.load_mni152_wm_template(resolution=resolution).get_fdata()
    likeliest = np.argmax([grey, white, 1 - grey - white], axis=0) + 1  # in the order of TISSUES
    intensities = np.where(brain, np.clip(image.get_fdata(), 0, 1), 0)
    return Template(
        nib.Nifti1Image(intensities.astype(np.float32), image.affine),
        nib.Nifti1Image(np.where(brain, likeliest, 0).astype(np.uint8), image.affine),
    )


def random_map(template: Template, rng: np.random.Generator) -> TrueMap:
    """Draw a smooth invertible deformation and a head position.

    The deformation moves points by several mm. The head is turned by up to 8 degrees about each axis, moved by up to
    10 mm and scaled by up to 6 % along each axis.
    """
    corners = _brain_box(template)
    shape = np.ceil((corners[1] - corners[0]) / VELOCITY_SPACING).astype(int) + 1
    velocity = np.zeros((3, *shape))
    for width, size in VELOCITY_SCALES:
        for component in velocity:
            component += size * _smooth_noise(rng, tuple(shape), width / VELOCITY_SPACING)

    centre = corners.mean(axis=0)
    turn = Rotation.from_euler("xyz", rng.uniform(-8, 8, 3), degrees=True).as_matrix()
    linear = np.eye(4)
    linear[:3, :3] = turn @ np.diag(rng.uniform(0.94, 1.06, 3))
    linear[:3, 3] = centre + rng.uniform(-10, 10, 3) - linear[:3, :3] @ centre
    return TrueMap(velocity, corners[0], linear)


def scan(
    template: Template, truth: TrueMap, appearance: Appearance, rng: np.random.Generator
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Simulate the scan of a subject and its tissue labels.

    Parameters
    ----------
    template : Template
        Template of a finer resolution than the scan, so that the interpolation does not blur it.
    truth : TrueMap
        Map from atlas to subject.
    appearance : Appearance
        Appearance of the scan.
    rng : Generator
        Source of inhomogeneity and noise.

    Returns
    -------
    image : Nifti1Image
        int16, 0 outside the brain.
    labels : Nifti1Image
        uint8 tissue labels on the image's grid.
    """
    shape, affine = _field_of_view(template, truth, appearance)
    voxels = np.indices(shape).reshape(3, -1).T.astype(float)
    source = _apply(np.linalg.inv(template.image.affine), truth.map_points_back(_apply(affine, voxels))).T

    def look_up(image: nib.Nifti1Image, order: int) -> NDArray[np.float64]:
        return map_coordinates(image.get_fdata(), source, order=order).reshape(shape)

    labels = look_up(template.labels, 0).astype(np.uint8)
    brain = labels > 0
    clean = np.clip(look_up(template.image, 1), 0, 1) ** appearance.contrast
    bias = np.exp(appearance.bias * _smooth_noise(rng, shape, 30 / appearance.spacing))
    real, imaginary = rng.normal(scale=appearance.noise, size=(2, *shape))
    measured = np.hypot(clean * bias + real, imaginary)
    # Never 0 inside, because a skull-stripped scan is 0 outside the brain only.
    intensities = np.where(brain, np.maximum(np.round(1000 * measured), 1), 0).astype(np.int16)
    return nib.Nifti1Image(intensities, affine), nib.Nifti1Image(labels, affine)


def _field_of_view(
    template: Template, truth: TrueMap, appearance: Appearance
) -> tuple[tuple[int, int, int], NDArray[np.floating]]:
    """Return the grid around the subject's brain, with voxel axes in the chosen directions."""
    inside = np.argwhere(np.asarray(template.labels.dataobj)[::4, ::4, ::4] > 0) * 4.0
    brain = truth.map_points(_apply(template.labels.affine, inside))
    low, high = brain.min(axis=0) - 10, brain.max(axis=0) + 10
    shape = np.ceil((high - low) / appearance.spacing).astype(int)
    affine = np.diag([appearance.spacing] * 3 + [1.0])
    affine[:3, 3] = low
    plain = nib.orientations.axcodes2ornt("RAS")
    wanted = nib.orientations.axcodes2ornt(appearance.orientation)
    change = nib.orientations.ornt_transform(plain, wanted)
    turned = shape[np.argsort(change[:, 0])]
    return (int(turned[0]), int(turned[1]), int(turned[2])), affine @ nib.orientations.inv_ornt_aff(
        change, tuple(shape)
    )


def _brain_box(template: Template) -> NDArray[np.float64]:
    """Return the lowest and highest corner ``(2, 3)`` of the brain, RAS mm, widened by `MAX_SHIFT`."""
    world = _apply(template.labels.affine, np.argwhere(np.asarray(template.labels.dataobj) > 0).astype(float))
    return np.stack([world.min(axis=0) - MAX_SHIFT, world.max(axis=0) + MAX_SHIFT])


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> NDArray[np.float64]:
    """Return Gaussian noise smoothed by `width` voxels, with mean 0 and standard deviation 1."""
    noise = gaussian_filter(rng.normal(size=shape), width, mode="reflect")
    return (noise - noise.mean()) / noise.std()


def _apply(affine: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.float64]:
    return points @ affine[:3, :3].T + affine[:3, 3]
