"""Affine alignment by ANTs, done once per pair and shared by every engine; also the engine ``affine``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from nio_pydra.engines.ants_process import AntsOptions, AntsResult, run_ants
from nio_pydra.engines.contract import Deformation, Pair, Runtime, brain_only
from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_image, load_mask
from nio_pydra.spatial.itk import write_h5
from nio_pydra.spatial.transforms import Transform
from nio_pydra.system.scratch import scratch_folder

__all__ = ["PRESETS", "AffineSettings", "align", "align_brains", "run"]

LARGEST_SCALE = 2.0
"""Heads differ by far less in any direction, so a larger stretch (or its inverse) is a failed alignment."""


@dataclass(frozen=True)
class AffineSettings:
    """The engine has nothing to set: it adds no deformation to the affine."""


PRESETS: dict[str, AffineSettings] = {"default": AffineSettings()}


def run(pair: Pair, settings: AffineSettings, runtime: Runtime) -> Deformation:
    """Return no deformation: the pair's affine is the whole registration."""
    return Deformation(None, None, {"seconds": 0.0, "peak_memory_mb": 0.0})


def align(
    fixed: Path,
    moving: Path,
    out: Path,
    *,
    fixed_mask: Path | None,
    moving_mask: Path | None,
    runtime: Runtime,
    lesion_mask: Path | None = None,
) -> dict[str, float]:
    """Align two brains by an affine that maximizes their mutual information, as :func:`align_brains` says.

    Parameters
    ----------
    fixed, moving : pathlib.Path
        3-D images.
    out : pathlib.Path
        The ITK composite ``.h5`` to write, holding one affine, fixed to moving.
    fixed_mask, moving_mask : pathlib.Path or None
        Brain masks; None where the image holds nothing but the brain.
    runtime : Runtime
        Gives the seed; the same seed gives the same bits.
    lesion_mask : pathlib.Path or None
        Region of the moving image without a counterpart; taken out of the similarity.

    Returns
    -------
    dict
        ``seconds`` (registration alone) and ``peak_memory_mb``.

    Raises
    ------
    InputError
        If an input cannot be used, or the result is singular, mirrors or scales by more than 2.
    AntsError
        If the ANTs process fails.
    """
    fixed_brain = _load_brain(fixed, fixed_mask, "fixed image")
    moving_brain = _load_brain(moving, moving_mask, "moving image")
    lesion = None if lesion_mask is None else load_mask(lesion_mask, like=moving_brain, role="lesion mask")
    result = align_brains(fixed_brain, moving_brain, runtime, names=(fixed, moving), lesion=lesion)
    write_h5(Transform((result.affine,)), out)
    return {"seconds": result.seconds, "peak_memory_mb": result.peak_memory_mb}


def align_brains(
    fixed: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    runtime: Runtime,
    *,
    names: tuple[Path, Path],
    lesion: nib.Nifti1Image | None = None,
) -> AntsResult:
    """Do the work of :func:`align` on images in memory.

    The search starts where the two brains' centres of mass meet, so positions far apart and different
    orientation codes do no harm; turns beyond about 40 degrees are not found. It runs on one thread whatever
    `runtime.threads` says: ITK adds up this metric in the order in which threads finish, and the optimum
    found then differs from run to run.

    Parameters
    ----------
    fixed, moving : nibabel.Nifti1Image, shape (X, Y, Z)
        Brains, zero outside.
    runtime : Runtime
        Gives the seed.
    names : tuple of pathlib.Path
        What the fixed and the moving one are called in messages.
    lesion : nibabel.Nifti1Image, optional
        On the moving grid, see :func:`run_ants`.

    Returns
    -------
    AntsResult
        Its affine leads from fixed to moving, RAS mm.

    Raises
    ------
    InputError, AntsError
        As :func:`align` does.
    """
    with scratch_folder(runtime.scratch) as folder:
        result = run_ants(fixed, moving, AntsOptions("Affine"), folder, runtime, lesion=lesion, threads=1)
    check_affine(result.affine, names[1], names[0])
    return result


def check_affine(affine: np.ndarray, moving: Path, fixed: Path) -> None:
    """Refuse an affine that no pair of heads can need.

    Parameters
    ----------
    affine : numpy.ndarray, shape (4, 4)
        World to world, mm.
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


def _load_brain(path: Path, mask_path: Path | None, role: str) -> nib.Nifti1Image:
    image = load_image(path, role)
    return brain_only(image, None if mask_path is None else load_mask(mask_path, like=image))
