"""Affine alignment by ANTs, done once per pair and shared by every engine; also the engine ``affine``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.engines.alignment_check import check_alignment, coarse
from nio_pydra.engines.ants_process import AntsOptions, AntsResult, run_ants
from nio_pydra.engines.contract import Deformation, Engine, Pair, Runtime, ScanFiles, foreground_only
from nio_pydra.engines.stopwatch import Spent
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.spatial.images import load_image, load_mask
from nio_pydra.spatial.itk import write_h5
from nio_pydra.spatial.transforms import Transform
from nio_pydra.system.scratch import scratch_folder

__all__ = ["AFFINE", "AffineSettings", "align", "align_images"]

log = logging.getLogger("nio_pydra")

PLAIN = AntsOptions("Affine")
SEARCHES = ((45.0, True), (45.0, False), (30.0, False))
"""Where to look for a start, in order: degrees between turns, and whether the principal axes are aligned first. Each
finds some of all turns; docs/results/turns.md says what they find together."""


@dataclass(frozen=True)
class AffineSettings:
    """The engine has nothing to set: it adds no deformation to the affine."""


class AffineEngine(Engine):
    """The affine alone."""

    what = "affine alignment by ANTs, the start of every other engine, and nothing after it"
    citation = "Avants et al. 2011, NeuroImage 54, doi:10.1016/j.neuroimage.2010.09.025"
    presets = MappingProxyType({"default": AffineSettings()})

    def run(self, pair: Pair, settings: AffineSettings, runtime: Runtime) -> Deformation:
        """Return no deformation: the pair's affine is the whole registration."""
        return Deformation(None, None, Spent(0.0, 0.0))

    def fingerprint(self, settings: Any) -> str:
        """Return the version of antspyx."""
        return f"antspyx-{version('antspyx')}"


AFFINE = AffineEngine()


def align(
    fixed: ScanFiles, moving: ScanFiles, out: Path, runtime: Runtime, *, profile: Profile = BRAIN
) -> dict[str, float]:
    """Align two objects by an affine that maximizes their mutual information, as :func:`align_images` says.

    Parameters
    ----------
    fixed, moving : ScanFiles
        Images and masks; without a mask the image is zero outside the object. A lesion of the moving image is taken
        out of the similarity.
    out : Path
        The ITK composite ``.h5`` to write, holding one affine, fixed to moving points.
    runtime : Runtime
        Gives the seed; the same seed gives the same bits.
    profile : Profile
        What the images show.

    Returns
    -------
    dict
        ``seconds`` and ``processor_seconds`` (of the registration alone) and ``peak_memory_mb``.

    Raises
    ------
    InputError
        If an input cannot be used, or the result does not align the objects
        (:func:`nio_pydra.engines.alignment_check.check_alignment`).
    ProgramError
        If the ANTs process fails.
    """
    images = (_load_foreground(fixed, "fixed image", profile), _load_foreground(moving, "moving image", profile))
    lesion = None
    if moving.lesion_mask is not None:
        lesion = load_mask(moving.lesion_mask, like=images[1], role="lesion mask")
    result = align_images(*images, runtime, names=(fixed.image, moving.image), lesion=lesion, profile=profile)
    write_h5(Transform((result.affine,)), out)
    return {
        "seconds": result.spent.wall,
        "processor_seconds": result.spent.processor,
        "peak_memory_mb": result.peak_memory_mb,
    }


def align_images(
    fixed: Nifti1Image,
    moving: Nifti1Image,
    runtime: Runtime,
    *,
    names: tuple[Path, Path],
    lesion: Nifti1Image | None = None,
    profile: Profile = BRAIN,
) -> AntsResult:
    """Do the work of :func:`align` on images in memory.

    The search starts where the centres of mass of the two objects meet, so positions far apart and different
    orientation codes do no harm. Where that does not align them, as it may not if one is turned by more than about 40
    degrees, the start is looked for among turns in all directions, at 4 mm. It runs on one thread whatever
    `runtime.threads` says: ITK adds up this metric in the order in which threads finish, and the optimum found then
    differs from run to run.

    Parameters
    ----------
    fixed, moving : Nifti1Image
        ``(X, Y, Z)``, zero outside the object.
    runtime : Runtime
        Gives the seed.
    names : tuple of Path
        What the fixed and the moving one are called in messages.
    lesion : Nifti1Image, optional
        On the moving grid, see :func:`run_ants`.
    profile : Profile
        What the images show.

    Returns
    -------
    AntsResult
        Its affine leads from fixed to moving, RAS mm.

    Raises
    ------
    InputError, ProgramError
        As :func:`align` does.
    """

    def ants(
        pair: tuple[Nifti1Image, Nifti1Image], options: AntsOptions, start: NDArray[np.floating] | None = None
    ) -> AntsResult:
        with scratch_folder(runtime.scratch) as folder:
            return run_ants(*pair, options, folder, runtime, affine=start, lesion=lesion, threads=1)

    def check(affine: NDArray[np.floating]) -> None:
        check_alignment(fixed, moving, affine, names=names, lesion=lesion, profile=profile)

    if lesion is not None and not (np.asanyarray(moving.dataobj) * (np.asanyarray(lesion.dataobj) == 0)).any():
        raise InputError(
            f"{names[1]}: its lesion mask covers the whole {profile.name}, so that nothing is left to compare."
        )
    result = ants((fixed, moving), PLAIN)
    try:
        check(result.affine)
    except InputError as error:
        failure = error
    else:
        return result
    log.info("%s: not aligned from where the centres meet, other starts are tried", names[1])
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


def _load_foreground(scan: ScanFiles, role: str, profile: Profile) -> Nifti1Image:
    image = load_image(scan.image, role)
    return foreground_only(image, None if scan.mask is None else load_mask(scan.mask, like=image), profile)
