"""All scans of a dataset, each registered to each atlas by the `Subject` workflow."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
from nibabel.nifti1 import Nifti1Image

from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan
from nio_pydra.bids.outputs import discard_leftovers, engine_desc
from nio_pydra.bids.products import Destination
from nio_pydra.spatial.images import UNREADABLE
from nio_pydra.system.settings import plain
from nio_pydra.tasks.inputs import code_version
from nio_pydra.workflows.atlases import atlas_mask, atlas_object, scans_at_a_time
from nio_pydra.workflows.outcomes import Failures, Outcome, failure_of, stored_products, unreadable
from nio_pydra.workflows.progress import subject_hooks
from nio_pydra.workflows.pydra_private import Submitter, stored_outputs
from nio_pydra.workflows.settings import DatasetSettings, worker_of
from nio_pydra.workflows.slurm import Lost, Scans, run_scans
from nio_pydra.workflows.slurm_jobs import resources_of
from nio_pydra.workflows.subject import Subject
from nio_pydra.workflows.work_folder import opened

__all__ = ["register_dataset"]

log = logging.getLogger("nio_pydra")


def register_dataset(
    scans: Sequence[Scan], atlases: Sequence[Atlas], settings: DatasetSettings, *, out_dir: Path, work_dir: Path
) -> list[Outcome]:
    """Register scans to one or several atlases. A scan that fails does not stop the others.

    Results that an earlier run with the same `work_dir` finished are used again. The mask of a scan is made once.

    Parameters
    ----------
    scans : sequence of Scan
        Scans to register.
    atlases : sequence of Atlas
        Atlases to align each of them to.
    settings : DatasetSettings
        How to register them.
    out_dir : Path
        Folder for the derivatives. Those of a scan are written as soon as it is done.
    work_dir : Path
        Folder for pydra's cache.

    Returns
    -------
    list of Outcome
        For each atlas, in the order of `scans`.

    Raises
    ------
    InputError
        If no object is found in an atlas, the worker cannot be used, or memory is too small for so many scans at a
        time.
    """
    with opened(work_dir) as cache:
        failures = Failures(scans, atlases, settings, out_dir, cache)
        outcomes = _register_all(scans, atlases, settings, failures, cache)
    for outcome in outcomes:
        failures.note(outcome)
    return outcomes


def _register_all(
    scans: Sequence[Scan], atlases: Sequence[Atlas], settings: DatasetSettings, failures: Failures, cache: Path
) -> list[Outcome]:
    out_dir = failures.out_dir
    worker = worker_of(settings)
    with Submitter(worker=worker, cache_root=cache, n_procs=1) as submit:
        masks = {atlas.label: atlas_mask(atlas, settings, submit, cache) for atlas in atlases}
    common = _common_inputs(settings)
    problems = {scan.name: problem for scan in scans if (problem := scan.problem or unreadable(scan))}
    inputs: dict[str, dict[str, Any]] = {}
    waiting: dict[str, dict[str, Any]] = {}
    for scan in scans:
        if scan.name in problems:
            continue
        discard_leftovers(_destination(scan, atlases[0], settings, out_dir))
        own = {
            _name(scan, atlas, atlases): _inputs(scan, atlas, settings, out_dir, masks[atlas.label])
            for atlas in atlases
        }
        try:
            waiting |= {name: each for name, each in own.items() if stored_products(common, each, cache) is None}
        except OSError as error:  # pydra reads all of a file
            problems[scan.name] = (
                f"{scan.image}, or a file that belongs to it, cannot be read: {error.strerror or error}."
            )
            continue
        inputs |= own
    for scan in scans:
        for atlas in atlases if scan.name in problems else ():
            failures.note(Outcome(scan, atlas, problems[scan.name]))
    # Atlas by atlas, so that no two at a time need the mask of the same scan.
    names = [_name(scan, atlas, atlases) for atlas in atlases for scan in scans]
    waiting = {name: waiting[name] for name in names if name in waiting}
    left = waiting if settings.stop_on_first_crash and problems else {}
    lost: dict[str, Lost] = {}
    if waiting and not left and settings.worker == "slurm":
        lost = _run_jobs([atlas_object(atlas, masks[atlas.label], settings) for atlas in atlases], failures, common,
                         waiting, cache)  # fmt: skip
    elif waiting and not left:
        at_a_time = scans_at_a_time(atlases, masks, settings, len(waiting))
        with Submitter(worker=worker, cache_root=cache, n_procs=at_a_time) as submit:
            left = _run_subjects(submit, common, waiting, at_a_time, failures)

    def outcome(scan: Scan, atlas: Atlas) -> Outcome:
        if scan.name in problems:
            return Outcome(scan, atlas, problems[scan.name])
        name = _name(scan, atlas, atlases)
        if name in left:
            return Outcome(
                scan, atlas, "not started, because another scan failed (--stop-on-first-crash)", started=False
            )
        reason, details = failure_of(common, inputs[name], cache, lost.get(name))
        if reason and not details:  # another run in the same work folder may have deleted what pydra stored
            reason, details = failures.known(scan, atlas) or (reason, details)
        return Outcome(scan, atlas, reason, details)

    return [outcome(scan, atlas) for atlas in atlases for scan in scans]


def _name(scan: Scan, atlas: Atlas, atlases: Sequence[Atlas]) -> str:
    """Return what a registration is called: the name of the scan, and that of the atlas where there are several."""
    return scan.name if len(atlases) == 1 else f"{scan.name} to {atlas.label}"


def _run_subjects(
    submit: Any,
    common: dict[str, Any],
    waiting: dict[str, dict[str, Any]],
    at_a_time: int,
    failures: Failures,
) -> dict[str, dict[str, Any]]:
    """Run the `Subject` workflow for each scan and atlas, as a split of one workflow. Return those not started."""
    several_atlases = len({own["destination"]["atlas"] for own in waiting.values()}) > 1
    stop_on_first_crash = failures.settings.stop_on_first_crash
    size = at_a_time if stop_on_first_crash else len(waiting)
    left = dict(waiting)
    while left:
        batch = [left.pop(name) for name in list(left)[:size]]
        keys = tuple(batch[0])
        split = Subject(**common).split(keys, **{key: [own[key] for own in batch] for key in keys})
        submit(split, hooks=subject_hooks(several_atlases, failures), raise_errors=False)
        if stop_on_first_crash and any(stored_products(common, own, submit.cache_root) is None for own in batch):
            break
    return left


def _run_jobs(
    atlases: Sequence[Nifti1Image],
    failures: Failures,
    common: dict[str, Any],
    inputs: dict[str, dict[str, Any]],
    cache: Path,
) -> dict[str, Lost]:
    """Run the `Subject` workflow for each scan and atlas as a SLURM job."""
    settings = failures.settings
    largest = max(_voxel_count(own["scan"]) for own in inputs.values())
    fixed = max(atlases, key=lambda image: math.prod(image.shape))
    resources = resources_of(settings.method, settings.runtime, fixed, largest, settings.threads)
    scans = Scans(
        {name: {**common, **own} for name, own in inputs.items()},
        lambda every: stored_outputs(Subject(**every), cache) is not None,
        lambda every, lost: failures.store(every["destination"], *failure_of({}, every, cache, lost)),
    )
    at_a_time = settings.n_procs if settings.n_procs > 1 else None
    return run_scans(scans, cache.parent, resources, options=settings.slurm_args, at_a_time=at_a_time)


def _voxel_count(image: Path) -> int:
    """Return the number of voxels of an image; 0 for a damaged one, whose own job will say so."""
    try:
        return math.prod(nib.load(image).shape)
    except UNREADABLE:
        return 0


def _common_inputs(settings: DatasetSettings) -> dict[str, Any]:
    method = settings.method
    return {
        "engine": method.name,
        "preset": method.preset,
        "settings": plain(method.settings),
        "profile": settings.profile.name,
        "device": settings.runtime.device,
        "precision": settings.runtime.precision,
        "seed": settings.runtime.seed,
        "jacobian": settings.jacobian,
        "figures": settings.figures,
        "method_version": f"{code_version()}+{method.fingerprint()}",
    }


def _inputs(scan: Scan, atlas: Atlas, settings: DatasetSettings, out_dir: Path, atlas_mask: Path) -> dict[str, Any]:
    return {
        "scan": scan.image,
        "skull_stripped": scan.skull_stripped,
        "mask": scan.mask,
        "lesion_mask": scan.lesion,
        "own_labels": scan.labels,
        "atlas": atlas.image.absolute(),
        "atlas_mask": atlas_mask.absolute(),
        "labels_of_atlas": None if atlas.labels is None else atlas.labels.absolute(),
        "conformed_mask": settings.conformed_mask and scan.alone,
        "destination": asdict(_destination(scan, atlas, settings, out_dir)),
    }


def _destination(scan: Scan, atlas: Atlas, settings: DatasetSettings, out_dir: Path) -> Destination:
    return Destination(
        out_dir=str(out_dir.resolve()),
        entities=scan.entities,
        atlas=atlas.label,
        space=atlas.space,
        desc=engine_desc(settings.method.name),
        source=f"bids:raw:{scan.relative}",
        atlas_reference=atlas.reference,
        skull_stripped=scan.skull_stripped,
        labels_desc=settings.labels_desc if scan.labels else None,
        labels_source=scan.labels.as_uri() if scan.labels else None,
        profile=settings.profile.name,
    )
