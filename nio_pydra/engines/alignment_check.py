"""Whether an affine can be right: what no pair of heads can need, and what does not align the brains, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nio_pydra.errors import InputError
from nio_pydra.metrics import local_similarity
from nio_pydra.spatial.transforms import Transform, resample

__all__ = ["brains_match", "check_affine", "check_alignment", "coarse"]

LARGEST_SCALE = 2.0
"""Heads differ by far less in any direction, so a larger stretch (or its inverse) is a failed alignment."""
SMALLEST_OVERLAP = 0.5
"""Share of the fixed brain that the moving one must cover."""
SMALLEST_MATCH = 0.3
"""Similarity at 4 mm. It lies between scans that are aligned, unusual ones too, and scans that ended the wrong way
round: benchmarks/turns.py, docs/results/turns.md."""
COARSE_MM = 4.0
FWHM_TO_SIGMA = 1 / 2.355


def check_alignment(
    fixed: Nifti1Image,
    moving: Nifti1Image,
    affine: NDArray[np.floating],
    *,
    names: tuple[Path, Path],
    lesion: Nifti1Image | None = None,
) -> None:
    """Refuse an affine that does not bring two brains onto each other.

    Parameters
    ----------
    fixed, moving : Nifti1Image
        Brains, ``(X, Y, Z)``, zero outside.
    affine : ndarray
        4x4, RAS mm, fixed to moving points.
    names : tuple of Path
        What the fixed and the moving one are called in messages.
    lesion : Nifti1Image, optional
        On the moving grid; where it is not zero nothing is compared.

    Raises
    ------
    InputError
        As :func:`check_affine`, and if the moving brain lies beside the fixed one, or they do not look alike.
    """
    check_affine(affine, names[1], names[0])
    overlap, match = brains_match(fixed, moving, affine, lesion)
    if overlap < SMALLEST_OVERLAP:
        found = f"it covers {100 * overlap:.0f} % of that brain, expected at least {100 * SMALLEST_OVERLAP:.0f} %"
    elif match < SMALLEST_MATCH:
        found = f"their similarity at {COARSE_MM:g} mm is {match:.2f}, expected at least {SMALLEST_MATCH}"
    else:
        return
    raise InputError(
        f"{names[1]} could not be aligned to {names[0]}: {found}. Look at both images "
        "with their headers. Correct the orientation, or the masks if they are wrong."
    )


def brains_match(
    fixed: Nifti1Image, moving: Nifti1Image, affine: NDArray[np.floating], lesion: Nifti1Image | None = None
) -> tuple[float, float]:
    """Compare two brains at 4 mm, where noise and single folds do not matter.

    Parameters
    ----------
    fixed, moving, affine, lesion
        See :func:`check_alignment`.

    Returns
    -------
    overlap : float
        Share of the fixed brain that the moving one covers.
    match : float
        Mean squared local cross-correlation, window 7, of their insides: edges of two brains meet also where one of
        them is turned round.
    """
    grid = _coarse_grid(fixed)
    there = Transform((np.asarray(affine, float),))
    still, warped = _on_grid(fixed, grid, Transform(())), _on_grid(moving, grid, there)
    both = (still != 0) & (warped != 0)
    overlap = float(both.sum() / max(1, np.count_nonzero(still)))
    if lesion is not None:
        both &= _voxels(resample(lesion, grid, there, "nearest")) == 0
    if not both.any():
        return overlap, 0.0
    return overlap, local_similarity(still, warped, both)


def check_affine(affine: NDArray[np.floating], moving: Path, fixed: Path) -> None:
    """Refuse an affine that no pair of heads can need.

    Parameters
    ----------
    affine : ndarray
        4x4, world to world, mm.
    moving, fixed : pathlib.Path
        Named in the message.

    Raises
    ------
    InputError
        If the affine is singular, mirrors, or stretches or shrinks any direction by more than 2.
    """
    linear = affine[:3, :3]
    if not np.isfinite(affine).all():
        found = "an affine that is not finite"
    elif (determinant := np.linalg.det(linear)) <= 0:
        fault = "mirrors" if determinant < 0 else "is singular"
        found = f"an affine that {fault} (determinant {determinant:.3g})"
    else:
        scales = np.linalg.svd(linear, compute_uv=False)
        if scales[0] <= LARGEST_SCALE and scales[-1] >= 1 / LARGEST_SCALE:
            return
        found = f"an affine that scales by {scales[-1]:.2f} to {scales[0]:.2f}"
    raise InputError(
        f"{moving} could not be aligned to {fixed}: found {found}, expected scales "
        f"from {1 / LARGEST_SCALE:g} to {LARGEST_SCALE:g}; are both brain scans with the right headers?"
    )


def _voxels(image: Nifti1Image) -> NDArray[Any]:
    return np.asanyarray(image.dataobj)


def coarse(brain: Nifti1Image) -> Nifti1Image:
    """Return a brain, zero outside, on a grid of 4 mm along its own axes."""
    grid = _coarse_grid(brain)
    return Nifti1Image(_on_grid(brain, grid, Transform(())), grid.affine)


def _coarse_grid(image: Nifti1Image) -> Nifti1Image:
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    shape = np.maximum(1, np.ceil(np.array(image.shape) * spacing / COARSE_MM).astype(int))
    return Nifti1Image(np.broadcast_to(np.uint8(0), shape), image.affine @ np.diag([*(COARSE_MM / spacing), 1.0]))


def _on_grid(brain: Nifti1Image, grid: Nifti1Image, to_brain: Transform) -> NDArray[np.float32]:
    """Bring a brain onto a coarse grid; what is outside it stays zero, and nothing inside it becomes so."""
    mask = Nifti1Image((_voxels(brain) != 0).astype(np.uint8), brain.affine)
    inside = _voxels(resample(mask, grid, to_brain, "nearest")) > 0
    values = _voxels(resample(_smooth(brain), grid, to_brain))
    return np.where(inside, np.maximum(values, np.finfo(np.float32).tiny), np.float32(0))


def _smooth(brain: Nifti1Image) -> Nifti1Image:
    """Blur a brain to the resolution of the coarse grid, without the darkness around it."""
    spacing = np.linalg.norm(brain.affine[:3, :3], axis=0)
    sigma = np.where(spacing < COARSE_MM, COARSE_MM / spacing, 0) * FWHM_TO_SIGMA
    voxels = _voxels(brain)
    blurred, weight = (gaussian_filter(each.astype(np.float32), sigma) for each in (voxels, voxels != 0))
    return Nifti1Image(blurred / np.maximum(weight, 1e-3), brain.affine)
