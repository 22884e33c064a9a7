"""Affine alignment by ANTs, done once per pair and shared by every engine; also the engine ``affine``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from nio_pydra.engines.alignment_check import check_alignment, coarse
from nio_pydra.engines.ants_process import AntsOptions, AntsResult, run_ants
from nio_pydra.engines.contract import Deformation, Pair, Runtime, brain_only
from nio_pydra.engines.stopwatch import Spent
from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_image, load_mask
from nio_pydra.spatial.itk import write_h5
from nio_pydra.spatial.transforms import Transform
from nio_pydra.system.scratch import scratch_folder

__all__ = ["PRESETS", "AffineSettings", "align", "align_brains", "run"]

log = logging.getLogger("nio_pydra")

PLAIN = AntsOptions("Affine")
SEARCHES = ((45.0, True), (45.0, False), (30.0, False))
"""Where to look for a start, in order: degrees between turns, and whether the principal axes are aligned first. Each
finds some of all turns; docs/results/turns.md says what they find together."""


@dataclass(frozen=True)
class AffineSettings:
    """The engine has nothing to set: it adds no deformation to the affine."""


PRESETS: dict[str, AffineSettings] = {"default": AffineSettings()}


def run(pair: Pair, settings: AffineSettings, runtime: Runtime) -> Deformation:
    """Return no deformation: the pair's affine is the whole registration."""
    return Deformation(None, None, Spent(0.0, 0.0))


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
        ``seconds`` and ``processor_seconds`` (of the registration alone) and ``peak_memory_mb``.

    Raises
    ------
    InputError
        If an input cannot be used, or the result does not align the brains
        (:func:`nio_pydra.engines.alignment_check.check_alignment`).
    AntsError
        If the ANTs process fails.
    """
    fixed_brain = _load_brain(fixed, fixed_mask, "fixed image")
    moving_brain = _load_brain(moving, moving_mask, "moving image")
    lesion = None if lesion_mask is None else load_mask(lesion_mask, like=moving_brain, role="lesion mask")
    result = align_brains(fixed_brain, moving_brain, runtime, names=(fixed, moving), lesion=lesion)
    write_h5(Transform((result.affine,)), out)
    return {
        "seconds": result.spent.wall,
        "processor_seconds": result.spent.processor,
        "peak_memory_mb": result.peak_memory_mb,
    }


def align_brains(
    fixed: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    runtime: Runtime,
    *,
    names: tuple[Path, Path],
    lesion: nib.Nifti1Image | None = None,
) -> AntsResult:
    """Do the work of :func:`align` on images in memory.

    The search starts where the two brains' centres of mass meet, so positions far apart and different orientation
    codes do no harm. Where that does not align them, as it may not if one is turned by more than about 40 degrees, the
    start is looked for among turns in all directions, at 4 mm. It runs on one thread whatever `runtime.threads` says:
    ITK adds up this metric in the order in which threads finish, and the optimum found then differs from run to run.

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

    def ants(
        pair: tuple[nib.Nifti1Image, nib.Nifti1Image], options: AntsOptions, start: np.ndarray | None = None
    ) -> AntsResult:
        with scratch_folder(runtime.scratch) as folder:
            return run_ants(*pair, options, folder, runtime, affine=start, lesion=lesion, threads=1)

    def check(affine: np.ndarray) -> None:
        check_alignment(fixed, moving, affine, names=names, lesion=lesion)

    if lesion is not None and not (np.asanyarray(moving.dataobj) * (np.asanyarray(lesion.dataobj) == 0)).any():
        raise InputError(f"{names[1]}: its lesion mask covers the whole brain, so that nothing is left to compare.")
    result = ants((fixed, moving), PLAIN)
    try:
        check(result.affine)
    except InputError as error:
        failure = error
    else:
        return result
    log.info("%s: not aligned from where the brains' centres meet, other starts are tried", names[1])
    small, spent = (coarse(fixed), coarse(moving)), result.spent
    for search in SEARCHES:
        start = ants(small, replace(PLAIN, search=search))
        spent += start.spent
        try:
            check(start.affine)
            result = ants((fixed, moving), PLAIN, start.affine)
            spent += result.spent
            check(result.affine)
        except InputError:
            continue
        return replace(result, spent=spent)
    raise InputError(f"{failure} Turns in all directions were tried.")


def _load_brain(path: Path, mask_path: Path | None, role: str) -> nib.Nifti1Image:
    image = load_image(path, role)
    return brain_only(image, None if mask_path is None else load_mask(mask_path, like=image))
