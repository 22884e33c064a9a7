"""Affine alignment by ANTs, computed once per pair for every engine, and the engine ``affine``."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.engines.alignment_check import check_alignment, coarse, match_of
from nio_pydra.engines.ants_process import AntsOptions, AntsResult, run_ants
from nio_pydra.engines.contract import Deformation, Engine, Pair, Runtime, ScanFiles, foreground_only
from nio_pydra.engines.references import AVANTS_2011
from nio_pydra.engines.stopwatch import Spent
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.spatial.images import load_image, load_mask
from nio_pydra.spatial.itk import write_h5
from nio_pydra.spatial.transforms import Transform
from nio_pydra.system.forks import fork_safe
from nio_pydra.system.scratch import scratch_folder

__all__ = ["AFFINE", "align", "align_images", "keep_frame"]

log = logging.getLogger("nio_pydra")

PLAIN = AntsOptions("Affine")
SEARCHES = ((45.0, True), (45.0, False), (30.0, False))
"""Searches for a start, in order: degrees between turns, and whether the principal axes are aligned first. Each search
alone misses some turns; docs/results/turns.md reports what all three find together."""


@dataclass(frozen=True)
class AffineSettings:
    """The engine has no settings, because it adds no deformation to the affine."""


class AffineEngine(Engine):
    """The affine alone."""

    what = "affine alignment by ANTs alone, which is the start of every other engine"
    references = (AVANTS_2011,)
    package = "antspyx"
    presets = MappingProxyType({"default": AffineSettings()})
    threads = 1

    def processor_minutes(self, settings: AffineSettings) -> float:
        """Return 0: there is no time beside that of the affine, which every job has."""
        return 0.0

    def run(self, pair: Pair, settings: AffineSettings, runtime: Runtime) -> Deformation:
        """Return no deformation, because the pair's affine is the whole registration."""
        return Deformation(None, None, Spent(0.0, 0.0))


AFFINE = AffineEngine()


@fork_safe
def align(
    fixed: ScanFiles, moving: ScanFiles, out: Path, runtime: Runtime, *, profile: Profile = BRAIN
) -> dict[str, float]:
    """Align two objects by an affine that maximizes their mutual information (see :func:`align_images`).

    Parameters
    ----------
    fixed, moving : ScanFiles
        Images and masks. Without a mask the image is zero outside the object. The similarity ignores a lesion of the
        moving image.
    out : Path
        ITK composite ``.h5`` to write, with one affine from fixed to moving points.
    runtime : Runtime
        Seed; the same seed gives the same bits.
    profile : Profile
        Profile of the images.

    Returns
    -------
    dict
        ``seconds`` and ``processor_seconds`` (of the registration alone), ``peak_memory_mb`` and ``starts``: 1 if the
        alignment from the centres of mass was right, more if others had to be searched.

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
        "starts": result.starts,
    }


@fork_safe
def keep_frame(fixed: ScanFiles, moving: ScanFiles, out: Path, *, profile: Profile = BRAIN) -> None:
    """Write the identity instead of an affine, for two images of one frame: one session of one scanner.

    Parameters
    ----------
    fixed, moving, out, profile
        See :func:`align`.

    Raises
    ------
    InputError
        If an input cannot be used, or the moving object does not cover the fixed one.
    """
    images = (_load_foreground(fixed, "fixed image", profile), _load_foreground(moving, "moving image", profile))
    overlap, _ = match_of(*images, np.eye(4))
    if overlap < profile.smallest_overlap:
        raise InputError(
            f"{moving.image} without an affine covers {math.floor(100 * overlap)} % of the {profile.name} of "
            f"{fixed.image}, expected at least {100 * profile.smallest_overlap:.0f} %: they do not lie in one frame, "
            "so let them be aligned."
        )
    write_h5(Transform((np.eye(4),)), out)


def align_images(
    fixed: Nifti1Image,
    moving: Nifti1Image,
    runtime: Runtime,
    *,
    names: tuple[Path, Path],
    lesion: Nifti1Image | None = None,
    profile: Profile = BRAIN,
) -> AntsResult:
    """Align images in memory, as :func:`align` does for files.

    The search starts with the centres of mass of the two objects aligned, so distant positions and different
    orientation codes do no harm. It can fail if one object is turned by more than about 40 degrees. Then a start is
    searched among turns in all directions, at 4 mm. ANTs always runs on one thread: ITK sums this metric in the order
    in which threads finish, so with several the result would differ between runs.

    Parameters
    ----------
    fixed, moving : Nifti1Image
        ``(X, Y, Z)``, zero outside the object.
    runtime : Runtime
        Seed.
    names : tuple of Path
        Names of the fixed and the moving image in messages.
    lesion : Nifti1Image, optional
        Lesion mask on the moving grid (see :func:`run_ants`).
    profile : Profile
        Profile of the images.

    Returns
    -------
    AntsResult
        Result with the affine from fixed to moving points, RAS mm.

    Raises
    ------
    InputError, ProgramError
        As :func:`align`.
    """

    def ants(
        pair: tuple[Nifti1Image, Nifti1Image], options: AntsOptions, start: NDArray[np.floating] | None = None
    ) -> AntsResult:
        with scratch_folder(runtime.scratch) as folder:
            return run_ants(*pair, options, folder, replace(runtime, threads=1), affine=start, lesion=lesion)

    def check(affine: NDArray[np.floating]) -> None:
        check_alignment(fixed, moving, affine, names=names, lesion=lesion, profile=profile)

    if lesion is not None and not (np.asanyarray(moving.dataobj) * (np.asanyarray(lesion.dataobj) == 0)).any():
        raise InputError(
            f"{names[1]}: its lesion mask covers the whole {profile.name}, expected a part of it. Give another mask."
        )
    result = ants((fixed, moving), PLAIN)
    try:
        check(result.affine)
        return result
    except InputError as error:
        failure = error
    log.info("%s: not aligned from its centre of mass, other starts are tried", names[1])
    small, spent = (coarse(fixed), coarse(moving)), result.spent
    for starts, search in enumerate(SEARCHES, start=2):
        start = ants(small, replace(PLAIN, search=search))
        spent += start.spent
        try:
            check(start.affine)
            result = ants((fixed, moving), PLAIN, start.affine)
            spent += result.spent
            check(result.affine)
        except InputError:
            continue
        return replace(result, spent=spent, starts=starts)
    raise InputError(f"{failure} Turns in all directions were tried.")


def _load_foreground(scan: ScanFiles, role: str, profile: Profile) -> Nifti1Image:
    image = load_image(scan.image, role)
    return foreground_only(image, None if scan.mask is None else load_mask(scan.mask, like=image), profile)
