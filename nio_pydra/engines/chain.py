"""All steps for one pair: preparation of both images, affine, registration, labels, score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from nio_pydra.engines.affine import align, keep_frame
from nio_pydra.engines.contract import Memory, Runtime, ScanFiles, foreground_only
from nio_pydra.engines.masks import prepare
from nio_pydra.engines.methods import Method, choose_method, usual_preset, warn_if_adapted_to_others
from nio_pydra.engines.names import DEFAULT_ENGINE
from nio_pydra.engines.registration import map_volume_change, measure_landmarks, propagate_labels, register, score
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.spatial.images import load_image, load_mask, same_grid
from nio_pydra.spatial.landmarks import read_pair
from nio_pydra.system.files import contents_digest
from nio_pydra.system.forks import fork_safe
from nio_pydra.system.places import refuse_same_file
from nio_pydra.system.scratch import scratch_folder

__all__ = ["predicted_memory", "register_pair"]

KINDS = ("image", "mask", "labels", "lesion_mask", "landmarks")
"""Files of a scan, none of which a result replaces."""
RESULTS = (
    "record.json", "forward_xfm.h5", "inverse_xfm.h5", "warped.nii.gz", "jacobian.nii.gz", "labels.nii.gz",
    "fixed_labels.nii.gz",
)  # fmt: skip
"""In order of creation. The record comes first and shows that the others belong to a registration."""


@fork_safe
def register_pair(
    fixed: ScanFiles,
    moving: ScanFiles,
    out_dir: Path,
    method: Method | None = None,
    *,
    jacobian: bool = False,
    profile: Profile = BRAIN,
    runtime: Runtime | None = None,
    affine: bool = True,
) -> dict[str, Any]:
    """Prepare, align and register one pair, propagate its labels and score them.

    Parameters
    ----------
    fixed, moving : ScanFiles
        Scans with their masks, labels and landmarks. If both have labels, the record holds their Dice; if both have
        landmarks, their distances before and after the registration (``tre``).
    out_dir : Path
        Folder for ``forward_xfm.h5``, ``inverse_xfm.h5``, ``warped.nii.gz``, ``record.json`` and, if the
        scans have labels, ``labels.nii.gz`` (the moving ones on the fixed grid) and ``fixed_labels.nii.gz`` (the fixed
        ones on the moving grid).
    method : Method, optional
        Engine and settings. Default: the default engine, with the preset for such images.
    jacobian : bool
        Whether ``jacobian.nii.gz``, the volume change on the fixed grid, is written
        (:func:`nio_pydra.engines.registration.map_volume_change`).
    profile : Profile
        Profile of the scans.
    runtime : Runtime, optional
        Device, threads, seed.
    affine : bool
        Whether an affine aligns the images first. Without one they must lie in one frame.

    Returns
    -------
    dict
        Record of the registration.

    Raises
    ------
    InputError
        If an input cannot be used, or a file would be lost. Nothing is written then.
    ProgramError, ComputationError
        If a step fails. Nothing is written then.
    """
    runtime, method = runtime or Runtime(), method or choose_method(preset=usual_preset(DEFAULT_ENGINE, profile))
    out_dir = Path(out_dir)
    given = [getattr(scan, kind) for scan in (fixed, moving) for kind in KINDS]
    if (fixed.landmarks is None) != (moving.landmarks is None):
        shown, missing = ("moving", "fixed") if fixed.landmarks is None else ("fixed", "moving")
        raise InputError(f"There are landmarks of the {shown} image only: give those of the {missing} image as well.")
    _refuse_loss(out_dir, [*given, getattr(method.settings, "weights", None)])
    method.fingerprint()  # refuses weights that cannot be used, before the work
    warn_if_adapted_to_others(method, [fixed.image])
    if fixed.landmarks is not None and moving.landmarks is not None:
        images = load_image(fixed.image, "fixed image"), load_image(moving.image, "moving image")
        read_pair(fixed.landmarks, images[0], moving.landmarks, images[1])
    with scratch_folder(out_dir) as work:
        runtime = replace(runtime, scratch=runtime.scratch or work)
        fixed = prepare(fixed, work / "fixed", runtime, role="fixed image", profile=profile)
        moving = prepare(moving, work / "moving", runtime, role="moving image", profile=profile)
        if profile.one_patient and contents_digest(fixed.image) == contents_digest(moving.image):
            raise InputError(f"{moving.image} and {fixed.image} are the same image: give two images of the patient.")
        start, results = work / "affine.h5", work / "results"
        aligned = None
        if affine:
            aligned = align(fixed, moving, start, runtime, profile=profile)
        else:
            keep_frame(fixed, moving, start, profile=profile)
        files = register(fixed, moving, start, results, method, affine_record=aligned, profile=profile, runtime=runtime)
        if fixed.landmarks is not None:
            measure_landmarks(fixed, moving, (start, files.forward_xfm), files.record)
        record = dict(json.loads(files.record.read_text()))
        if jacobian:
            map_volume_change(files.forward_xfm, fixed.image, results / "jacobian.nii.gz")
        if moving.labels is not None:
            propagated = propagate_labels(moving.labels, fixed.image, files.forward_xfm, results / "labels.nii.gz")
            if fixed.labels is not None:
                record = score(files.record, fixed.labels, propagated, files.record, moving.labels)
        if fixed.labels is not None:
            propagate_labels(fixed.labels, moving.image, files.inverse_xfm, results / "fixed_labels.nii.gz")
        for name in RESULTS:
            if (results / name).exists():
                (results / name).replace(out_dir / name)
            else:  # left by an earlier registration
                (out_dir / name).unlink(missing_ok=True)
    return record


def predicted_memory(fixed: ScanFiles, method: Method, runtime: Runtime, profile: Profile = BRAIN) -> Memory | None:
    """Predict the peak memory of a registration from the files of the fixed image. None: unknown.

    A mask on another grid is not taken into account.
    """
    image = load_image(fixed.image, "fixed image")
    mask = None if fixed.mask is None else load_mask(fixed.mask)
    if mask is not None and not same_grid(mask, image):
        mask = None
    return method.engine.memory_mb(foreground_only(image, mask, profile), method.settings, runtime)


def _refuse_loss(out_dir: Path, inputs: list[Path | None]) -> None:
    """Raise `InputError` if a result would replace an input, or a file that is not of an earlier registration."""
    refuse_same_file([out_dir / name for name in RESULTS], inputs)
    try:
        earlier = "engine" in json.loads((out_dir / "record.json").read_text())
    except (OSError, ValueError, TypeError):
        earlier = False
    for name in RESULTS:
        if not earlier and (out_dir / name).exists():
            raise InputError(f"{out_dir / name} is not of an earlier registration: choose another output folder.")
