"""Masks of the object: given, read from an image that is zero outside it, or found by a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.errors import InputError, ProgramError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.spatial.hounsfield import require_hounsfield
from nio_pydra.spatial.images import load_image, load_labels, load_mask, same_grid, save_image
from nio_pydra.spatial.transforms import Transform, resample
from nio_pydra.system.forks import fork_safe

__all__ = ["MAKERS", "background_is_zero", "conform_mask", "make_mask", "prepare"]

NOTHING_FOUND = ("argmax of an empty sequence", "Not enough foreground")
"""Errors by which deepbet's steps for the largest component and its box report that no voxel was predicted."""


@fork_safe
def prepare(scan: ScanFiles, folder: Path, runtime: Runtime, *, role: str, profile: Profile = BRAIN) -> ScanFiles:
    """Check the files of an image, and resample its masks onto its grid.

    This is the first step, so that wrong files are found before the registration.

    Parameters
    ----------
    scan : ScanFiles
        Files of the user. An empty lesion mask is ignored, because lesion segmentation writes one if it finds nothing.
    folder : Path
        Folder for ``mask.nii.gz`` and, if there is a lesion, ``lesion_mask.nii.gz`` (uint8, 0 and 1).
    runtime : Runtime
        Device and threads for the program that finds the object.
    role : str
        Name of the image in messages.
    profile : Profile
        Profile of the image.

    Returns
    -------
    ScanFiles
        The same scan with the new masks.

    Raises
    ------
    InputError
        If a file cannot be used, a mask lies outside the image, or the mask found is not plausible.
    ProgramError
        If the program that finds the object fails.
    """
    image = load_image(scan.image, role)
    if profile.hounsfield:
        require_hounsfield(image)
    if scan.labels is not None:
        load_labels(scan.labels, like=image, role=f"labels of the {role}")
    lesion_mask = None
    if scan.lesion_mask is not None:
        lesion = load_image(scan.lesion_mask, "lesion mask", may_be_empty=True)
        if np.asanyarray(lesion.dataobj).any():
            lesion_mask = _onto_image(scan.lesion_mask, image, "lesion mask", folder / "lesion_mask.nii.gz")
    out = folder / "mask.nii.gz"
    if scan.mask is not None:
        mask = _onto_image(scan.mask, image, f"{profile.name} mask", out)
    else:
        mask = make_mask(scan.image, out, runtime, skull_stripped=scan.skull_stripped, profile=profile)
    return replace(scan, mask=mask, lesion_mask=lesion_mask)


def make_mask(
    image: Path, out: Path, runtime: Runtime, *, skull_stripped: bool = False, profile: Profile = BRAIN
) -> Path:
    """Write the mask of the object in an image.

    Parameters
    ----------
    image : Path
        3-D image.
    out : Path
        NIfTI file to write, on the image's grid: uint8, 1 in the object.
    runtime : Runtime
        Device and threads.
    skull_stripped : bool
        Whether the image is zero outside the object. If so, holes in the object are filled. Otherwise a program finds
        the object.
    profile : Profile
        Profile of the image.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        If the image cannot be used, or the mask is empty or has no plausible volume.
    ProgramError
        If the program fails.
    """
    scan = load_image(image)
    if skull_stripped:
        mask = binary_fill_holes(scan.get_fdata(dtype=np.float32, caching="unchanged") != 0)
        advice = "Is it really skull-stripped, with a background of zero?"
    else:
        mask = MAKERS[profile.mask_maker](scan, runtime)
        advice = f"Check that it is a whole {profile.suffix} scan in mm, or give a {profile.name} mask of your own."
    litres, (smallest, largest) = float(mask.sum()) * abs(np.linalg.det(scan.affine[:3, :3])) / 1e6, profile.litres
    if not smallest <= litres <= largest:
        found = f"a {profile.name} mask of {litres:.2f} litres" if litres else f"no {profile.name}"
        raise InputError(f"{image}: found {found}, expected {smallest} to {largest} litres. {advice}")
    return save_image(mask.astype(np.uint8), scan.affine, out, dtype=np.uint8)


def background_is_zero(image: Path) -> bool:
    """Return whether the outermost voxels on all six sides of an image are zero, as after a skull-stripping.

    An image that cannot be used counts as not skull-stripped: :func:`prepare` says what is wrong with it.
    """
    try:
        voxels = np.asanyarray(load_image(image).dataobj)
    except InputError:
        return False
    return not any(side.any() for axis in range(3) for side in (voxels.take(0, axis), voxels.take(-1, axis)))


def conform_mask(mask: Path, out: Path) -> Path:
    """Write a mask with its axes in the order RAS, as fMRIPrep conforms a scan.

    Every voxel keeps its value and its place.

    Parameters
    ----------
    mask : Path
        Mask of a scan, on its grid.
    out : Path
        NIfTI file to write: uint8, 0 and 1.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        If the mask cannot be used.
    """
    turned = nib.as_closest_canonical(load_mask(mask))
    return save_image(np.asanyarray(turned.dataobj), turned.affine, out, dtype=np.uint8)


def _onto_image(path: Path, image: Nifti1Image, role: str, out: Path) -> Path:
    """Write a mask on an image's grid, because masks of other programs can lie on another grid."""
    mask = load_mask(path, role=role)
    if not same_grid(mask, image):
        mask = resample(mask, image, Transform(()), "nearest")
    voxels = np.asanyarray(mask.dataobj)
    if not voxels.any():
        raise InputError(
            f"{path} ({role}) lies outside {image.get_filename()}: expected a mask in the space of that image."
        )
    return save_image(voxels, image.affine, out, dtype=np.uint8)


def _deepbet(scan: Nifti1Image, runtime: Runtime) -> NDArray[np.bool_]:
    """Return the brain found by deepbet (Fisch et al. 2024), ``(X, Y, Z)``; all False if there is none."""
    import torch
    from deepbet import BrainExtraction

    before = torch.get_num_threads()
    torch.set_num_threads(runtime.thread_count)
    try:
        network = BrainExtraction(no_gpu=runtime.device == "cpu")
        # A float image with a new header, because deepbet copies the header with its scaling to the mask.
        image = nib.Nifti1Image(scan.get_fdata(dtype=np.float32, caching="unchanged"), scan.affine)
        try:
            _, mask, _ = network.run(image)
        except (ValueError, AssertionError) as error:
            if any(words in str(error) for words in NOTHING_FOUND):
                return np.zeros(scan.shape, dtype=bool)
            raise ProgramError(f"{scan.get_filename()}: brain extraction by deepbet failed: {error}") from error
    finally:
        torch.set_num_threads(before)
    return np.asanyarray(mask.dataobj) > 0


def _lungs(scan: Nifti1Image, runtime: Runtime) -> NDArray[np.bool_]:
    """Return both lungs, found by a threshold (:func:`nio_pydra.engines.lung_masks.find_lungs`)."""
    from nio_pydra.engines.lung_masks import find_lungs

    return find_lungs(scan)


MAKERS: dict[str, Callable[[Nifti1Image, Runtime], NDArray[np.bool_]]] = {"deepbet": _deepbet, "lungs": _lungs}
"""Functions that find an object in an image ``(X, Y, Z)`` and return its voxels."""
