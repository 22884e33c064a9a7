"""Check of an affine: an implausible one, or one that does not align the objects, is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nio_pydra.errors import InputError
from nio_pydra.metrics import local_similarity
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.spatial.transforms import Transform, resample

__all__ = ["check_affine", "check_alignment", "coarse", "match_of"]

COARSE_MM = 4.0
FWHM_TO_SIGMA = 1 / 2.355


def check_alignment(
    fixed: Nifti1Image,
    moving: Nifti1Image,
    affine: NDArray[np.floating],
    *,
    names: tuple[Path, Path],
    lesion: Nifti1Image | None = None,
    profile: Profile = BRAIN,
) -> None:
    """Refuse an affine that does not align two objects.

    Parameters
    ----------
    fixed, moving : Nifti1Image
        ``(X, Y, Z)``, zero outside the object.
    affine : ndarray
        4x4, RAS mm, fixed to moving points.
    names : tuple of Path
        Names of the fixed and the moving image in messages.
    lesion : Nifti1Image, optional
        Lesion mask on the moving grid. Voxels where it is not zero are not compared.
    profile : Profile
        Profile of the images, which gives the limits.

    Raises
    ------
    InputError
        As :func:`check_affine`, and if the moving object does not cover the fixed one, or they are not similar.
    """
    check_affine(affine, names[1], names[0], profile)
    overlap, match = match_of(fixed, moving, affine, lesion)
    if overlap < profile.smallest_overlap:
        found = (
            f"it covers {math.floor(100 * overlap)} % of that {profile.name}, expected at least "
            f"{100 * profile.smallest_overlap:.0f} %"
        )
    elif match < profile.smallest_match:
        shown = math.floor(1000 * match) / 1000  # rounded, it could be the limit itself
        found = f"their similarity at {COARSE_MM:g} mm is {shown:.3f}, expected at least {profile.smallest_match}"
    else:
        return
    raise InputError(
        f"{names[1]} could not be aligned to {names[0]}: {found}. Check both images and their headers. "
        "Correct the orientation, or the masks if they are wrong."
    )


def match_of(
    fixed: Nifti1Image, moving: Nifti1Image, affine: NDArray[np.floating], lesion: Nifti1Image | None = None
) -> tuple[float, float]:
    """Compare two objects at 4 mm, where noise and small structures do not matter.

    Parameters
    ----------
    fixed, moving, affine, lesion
        See :func:`check_alignment`.

    Returns
    -------
    overlap : float
        Share of the fixed object that the moving one covers.
    match : float
        Mean squared local cross-correlation, window 7, inside both objects. Their edges are left out, because they
        also match if one object is the wrong way round.
    """
    grid = _coarse_grid(fixed)
    to_moving = Transform((np.asarray(affine, float),))
    reference, warped = _on_grid(fixed, grid, Transform(())), _on_grid(moving, grid, to_moving)
    both = (reference != 0) & (warped != 0)
    overlap = float(both.sum() / max(1, np.count_nonzero(reference)))
    if lesion is not None:
        both &= _voxels(resample(lesion, grid, to_moving, "nearest")) == 0
    return overlap, local_similarity(reference, warped, both) if both.any() else 0.0


def check_affine(affine: NDArray[np.floating], moving: Path, fixed: Path, profile: Profile = BRAIN) -> None:
    """Refuse an affine that is implausible for two objects of a profile.

    Parameters
    ----------
    affine : ndarray
        4x4, world to world, mm.
    moving, fixed : Path
        Names of the images in the message.
    profile : Profile
        Profile of the images.

    Raises
    ------
    InputError
        If the affine is not finite, is singular, mirrors, or scales any direction by more than the profile's
        `largest_scale` or less than its inverse.
    """
    linear, largest = affine[:3, :3], profile.largest_scale
    if not np.isfinite(affine).all():
        found = "an affine that is not finite"
    elif (determinant := np.linalg.det(linear)) <= 0:
        fault = "mirrors" if determinant < 0 else "is singular"
        found = f"an affine that {fault} (determinant {determinant:.3g})"
    else:
        scales = np.linalg.svd(linear, compute_uv=False)
        if scales[0] <= largest and scales[-1] >= 1 / largest:
            return
        found = f"an affine that scales by {scales[-1]:.2f} to {scales[0]:.2f}"
    raise InputError(
        f"{moving} could not be aligned to {fixed}: found {found}, expected scales from {1 / largest:g} to "
        f"{largest:g}. Check that both are {profile.name} scans with the right headers."
    )


def _voxels(image: Nifti1Image) -> NDArray[Any]:
    return np.asanyarray(image.dataobj)


def coarse(image: Nifti1Image) -> Nifti1Image:
    """Resample an object to 4 mm along its own axes, zero outside."""
    grid = _coarse_grid(image)
    return Nifti1Image(_on_grid(image, grid, Transform(())), grid.affine)


def _coarse_grid(image: Nifti1Image) -> Nifti1Image:
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    shape = np.maximum(1, np.ceil(np.array(image.shape) * spacing / COARSE_MM).astype(int))
    return Nifti1Image(np.broadcast_to(np.uint8(0), shape), image.affine @ np.diag([*(COARSE_MM / spacing), 1.0]))


def _on_grid(image: Nifti1Image, grid: Nifti1Image, to_image: Transform) -> NDArray[np.float32]:
    """Resample an object onto a coarse grid, zero outside it and positive inside."""
    mask = Nifti1Image((_voxels(image) != 0).astype(np.uint8), image.affine)
    inside = _voxels(resample(mask, grid, to_image, "nearest")) > 0
    values = _voxels(resample(_smooth(image), grid, to_image))
    return np.where(inside, np.maximum(values, np.finfo(np.float32).tiny), np.float32(0))


def _smooth(image: Nifti1Image) -> Nifti1Image:
    """Blur an object to the resolution of the coarse grid, without its background."""
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    sigma = np.where(spacing < COARSE_MM, COARSE_MM / spacing, 0) * FWHM_TO_SIGMA
    voxels = _voxels(image)
    blurred, weight = (gaussian_filter(each.astype(np.float32), sigma) for each in (voxels, voxels != 0))
    return Nifti1Image(blurred / np.maximum(weight, 1e-3), image.affine)
