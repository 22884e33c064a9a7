"""Brain masks: read off a skull-stripped scan, or made by deepbet (Fisch et al. 2024)."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_fill_holes

from nio_pydra.engines.contract import Runtime
from nio_pydra.errors import InputError, ProgramError
from nio_pydra.spatial.images import load_image, save_image

__all__ = ["make_brain_mask"]

SMALLEST_LITRES, LARGEST_LITRES = 0.3, 2.5
"""Wide around human brains from newborn to adult, ventricles and cerebellum included."""
NOTHING_FOUND = ("argmax of an empty sequence", "Not enough foreground")
"""How deepbet's steps for the largest component and its box say that no voxel was predicted."""


def make_brain_mask(image: Path, out: Path, *, skull_stripped: bool, runtime: Runtime) -> Path:
    """Write the brain mask of a T1w scan.

    Parameters
    ----------
    image : pathlib.Path
        3-D scan.
    out : pathlib.Path
        NIfTI file to write: uint8, 1 in the brain, on the image's grid.
    skull_stripped : bool
        True: the brain is where the image is not zero, its holes filled. False: deepbet finds it.
    runtime : Runtime
        Device and threads for deepbet.

    Returns
    -------
    pathlib.Path
        `out`.

    Raises
    ------
    InputError
        If the image cannot be used, or the mask found is empty or no brain's size (0.3 to 2.5 litres).
    ProgramError
        If deepbet fails.
    """
    scan = load_image(image)
    if skull_stripped:
        mask = binary_fill_holes(scan.get_fdata(dtype=np.float32, caching="unchanged") != 0)
        advice = "is it really skull-stripped, with a background of zero?"
    else:
        mask = _deepbet(scan, runtime)
        advice = "check that it is a T1w scan of a whole head in mm, or give a brain mask of your own."
    litres = float(mask.sum()) * abs(np.linalg.det(scan.affine[:3, :3])) / 1e6
    if not SMALLEST_LITRES <= litres <= LARGEST_LITRES:
        found = f"a brain mask of {litres:.2f} litres" if litres else "no brain"
        raise InputError(f"{image}: found {found}, expected {SMALLEST_LITRES} to {LARGEST_LITRES} litres; {advice}")
    save_image(mask.astype(np.uint8), scan.affine, out, dtype=np.uint8)
    return out


def _deepbet(scan: nib.Nifti1Image, runtime: Runtime) -> np.ndarray:
    """Find the brain with deepbet; (X, Y, Z) bool on the scan's grid, all False if there is none."""
    import torch
    from deepbet import BrainExtraction

    before = torch.get_num_threads()
    torch.set_num_threads(runtime.thread_count)
    try:
        network = BrainExtraction(no_gpu=runtime.device == "cpu")
        # A float image with a clean header: deepbet copies the header, scaling included, to what it returns.
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
