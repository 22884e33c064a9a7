"""All scans of a dataset, each registered to each atlas by the `Subject` workflow."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
from nibabel.nifti1 import Nifti1Image

from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan, scan_name
from nio_pydra.bids.outputs import discard_leftovers, engine_desc, sink
from nio_pydra.bids.products import PRODUCTS, Destination
from nio_pydra.bids.records import Failure
from nio_pydra.engines.contract import Runtime, foreground_only
from nio_pydra.engines.memory import require_memory, scans_that_fit
from nio_pydra.engines.methods import Method
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.report.participant import write_participant_pages
from nio_pydra.spatial.images import UNREADABLE, load_image, load_mask
from nio_pydra.system.settings import plain
from nio_pydra.system.slurm import require_usable
from nio_pydra.system.wording import counted
from nio_pydra.tasks import Prepare
from nio_pydra.tasks.inputs import code_version
from nio_pydra.workflows.cache import discard_unfinished, failure_reason, in_use, own_folder
from nio_pydra.workflows.crash import crash_report
from nio_pydra.workflows.progress import subject_hooks
from nio_pydra.workflows.pydra_private import Submitter, stored_outputs, use_work_folder, warn_if_untried
from nio_pydra.workflows.slurm import Lost, Scans, live_jobs, run_scans
from nio_pydra.workflows.slurm_jobs import resources_of
from nio_pydra.workflows.subject import Subject
from nio_pydra.workflows.workers import ForkserverWorker, SerialWorker

__all__ = ["DatasetSettings", "Outcome", "atlas_mask", "register_dataset", "unreadable", "worker_of"]

log = logging.getLogger("nio_pydra")


@dataclass(frozen=True)
class DatasetSettings:
    """How the scans of a dataset are registered.

    Attributes
    ----------
    method : Method
        Engine and settings.
    runtime : Runtime
        Device, precision and seed. The number of threads is that of OMP_NUM_THREADS.
    worker : str
        ``debug`` (one after another), ``cf`` (processes) or ``slurm``.
    n_procs : int
        Number of scans at a time. For ``slurm``, 1 means as many as the cluster allows.
    threads : int or None
        Number of threads of each scan, if it was asked for. Only SLURM jobs read it, otherwise OMP_NUM_THREADS counts.
    slurm_args : str
        Options of sbatch, as in a shell.
    memory_mb : float or None
        Memory that all scans at a time may use together, MiB; fewer are registered at a time where it is too small.
        None: that of the machine, and too many scans at a time are refused.
    stop_on_first_crash : bool
        Whether no other scan is started after one has failed.
    labels_desc : str or None
        ``desc`` of the label images of the scans.
    conformed_mask : bool
        Whether to write the mask of a scan also as fMRIPrep takes it, where fMRIPrep would conform that scan alone.
    jacobian : bool
        Whether the map of the volume change of every registration is written.
    figures : bool
        Whether figures of every registration are drawn, and the page of its participant is written.
    profile : Profile
        What is registered.
    """

    method: Method
    runtime: Runtime
    worker: str = "debug"
    n_procs: int = 1
    memory_mb: float | None = None
    stop_on_first_crash: bool = False
    threads: int | None = None
    slurm_args: str = ""
    labels_desc: str | None = None
    conformed_mask: bool = False
    jacobian: bool = False
    figures: bool = True
    profile: Profile = BRAIN


@dataclass(frozen=True)
class Outcome:
    """Result of one scan with one atlas.

    Attributes
    ----------
    scan : Scan
        The scan.
    atlas : Atlas
        The atlas.
    reason, details : str
        Why it failed, in a sentence and in full. Empty after a success.
    started : bool
        Whether it was tried at all. False for those that were left after a failure.
    """

    scan: Scan
    atlas: Atlas
    reason: str = ""
    details: str = ""
    started: bool = True


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
    work_dir = own_folder(work_dir)
    warn_if_untried()
    cache = use_work_folder(work_dir)
    jobs_live = live_jobs(work_dir)  # of a run that was killed, or beside this one
    with in_use(work_dir, discard_locks=not jobs_live) as alone:
        discard_unfinished(cache, alone=alone and not jobs_live)
        failures = _Failures(scans, atlases, settings, out_dir, cache)
        outcomes = _register_all(scans, atlases, settings, failures, cache)
    for outcome in outcomes:
        failures.note(outcome)
    return outcomes


class _Failures:
    """Reasons why scans failed, stored in the output folder when it happens, for the group level and for pages.

    Called with a `Subject` task that has failed, it stores and returns the reason.

    Parameters
    ----------
    scans, atlases : sequence of Scan, sequence of Atlas
    settings : DatasetSettings
    out_dir : Path
        Folder for the derivatives.
    cache : Path
        pydra's cache folder.
    """

    def __init__(
        self, scans: Sequence[Scan], atlases: Sequence[Atlas], settings: DatasetSettings, out_dir: Path, cache: Path
    ) -> None:
        self.settings, self.out_dir, self.cache = settings, out_dir, cache
        self._pairs = {(scan_name(scan.entities), atlas.label): (scan, atlas) for scan in scans for atlas in atlases}
        self._stored: dict[tuple[str, str], str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out everything: pydra pickles this with each job, and no other process calls it."""
        return {}

    def __call__(self, task: Any) -> str:
        return self.store(task.destination, *failure_reason(self.cache, task))

    def store(self, to: dict[str, Any], reason: str, details: str) -> str:
        """Store why a scan failed, by the fields of its `Destination`, and write its page; return the reason."""
        # An error here would hide that of the scan; what could not be written is written at the end of the run.
        with suppress(InputError, OSError):
            self.note(Outcome(*self._pairs[scan_name(to["entities"]), to["atlas"]], reason, details))
            if self.settings.figures:
                whom = f"sub-{to['entities']['subject']}"
                write_participant_pages(self.out_dir, self.settings.profile, [whom], alone=True)
        return reason

    def note(self, outcome: Outcome) -> None:
        """Store why a scan failed, unless that is stored, or delete what an earlier run stored of one that is done."""
        scan, atlas, method = outcome.scan, outcome.atlas, self.settings.method
        pair = scan.name, atlas.label
        if not outcome.started or (outcome.reason and self._stored.get(pair) == outcome.reason):
            return
        desc = engine_desc(method.name)
        failure = Failure(scan.name, atlas.space, desc, method.name, method.preset, outcome.reason)
        if outcome.reason:
            why = outcome.reason, outcome.details
            failure.write(self.out_dir, crash_report(scan, atlas, method, self.settings.runtime, why))
            self._stored[pair] = outcome.reason
        else:
            failure.forget(self.out_dir)


def _register_all(
    scans: Sequence[Scan], atlases: Sequence[Atlas], settings: DatasetSettings, failures: _Failures, cache: Path
) -> list[Outcome]:
    out_dir = failures.out_dir
    problems = {scan.name: problem for scan in scans if (problem := scan.problem or unreadable(scan))}
    for scan in scans:
        for atlas in atlases if scan.name in problems else ():
            failures.note(Outcome(scan, atlas, problems[scan.name]))
    good = [scan for scan in scans if scan.name not in problems]
    for scan in good:
        discard_leftovers(_destination(scan, atlases[0], settings, out_dir))
    worker = worker_of(settings)
    with Submitter(worker=worker, cache_root=cache, n_procs=1) as submit:
        masks = {atlas.label: atlas_mask(atlas, settings, submit, cache) for atlas in atlases}
    common = _common_inputs(settings)
    inputs = {
        _name(scan, atlas, atlases): _inputs(scan, atlas, settings, out_dir, masks[atlas.label])
        for atlas in atlases
        for scan in good
    }
    waiting = {name: own for name, own in inputs.items() if _stored_products(common, own, cache) is None}
    left = waiting if settings.stop_on_first_crash and problems else {}
    lost: dict[str, Lost] = {}
    if waiting and not left and settings.worker == "slurm":
        lost = _run_jobs([_atlas_object(atlas, masks[atlas.label], settings) for atlas in atlases], failures, common,
                         waiting, cache)  # fmt: skip
    elif waiting and not left:
        at_a_time = _scans_at_a_time(atlases, masks, settings, len(waiting))
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
        return Outcome(scan, atlas, *_failure(common, inputs[name], cache, lost.get(name)))

    return [outcome(scan, atlas) for atlas in atlases for scan in scans]


def unreadable(scan: Scan) -> str:
    """Return a sentence about a file of a scan that cannot be read. Empty where all can."""
    for path in (scan.image, scan.lesion, scan.mask, scan.labels):
        # Reading uses the rights of the effective user, which only some systems can check.
        if path is not None and not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            if path.exists():
                return f"{path}: no permission to read it, change its permissions."
            return f"{path}: no such file; is it a link to content that was not fetched?"
    return ""


def _name(scan: Scan, atlas: Atlas, atlases: Sequence[Atlas]) -> str:
    """Return what a registration is called: the name of the scan, and that of the atlas where there are several."""
    return scan.name if len(atlases) == 1 else f"{scan.name} to {atlas.label}"


def _run_subjects(
    submit: Any,
    common: dict[str, Any],
    waiting: dict[str, dict[str, Any]],
    at_a_time: int,
    failures: _Failures,
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
        if stop_on_first_crash and any(_stored_products(common, own, submit.cache_root) is None for own in batch):
            break
    return left


def _run_jobs(
    atlases: Sequence[Nifti1Image],
    failures: _Failures,
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
        lambda every, lost: failures.store(every["destination"], *_failure({}, every, cache, lost)),
    )
    at_a_time = settings.n_procs if settings.n_procs > 1 else None
    return run_scans(scans, cache.parent, resources, options=settings.slurm_args, at_a_time=at_a_time)


def _voxel_count(image: Path) -> int:
    """Return the number of voxels of an image; 0 for a damaged one, whose own job will say so."""
    try:
        return math.prod(nib.load(image).shape)
    except UNREADABLE:
        return 0


def _failure(common: dict[str, Any], inputs: dict[str, Any], cache: Path, lost: Lost | None) -> tuple[str, str]:
    """Return why a registration failed, in a sentence and in full. Empty if it is done, and its files are written."""
    products = _stored_products(common, inputs, cache)
    if products is None:
        if lost is not None and lost.killed:
            return lost.reason, lost.details
        reason, details = failure_reason(cache, Subject(**common, **inputs))
        return (lost.reason, lost.details) if lost is not None and not details else (reason, details)
    try:
        # Also for a scan found in the cache: its derivatives may have been deleted since.
        sink(products, Destination(**inputs["destination"]))
    except (InputError, OSError) as error:
        return str(error), ""
    return "", ""


def _stored_products(common: dict[str, Any], inputs: dict[str, Any], cache: Path) -> dict[str, Path | None] | None:
    """Return the results of a scan from the cache. None where it is not done."""
    outputs = stored_outputs(Subject(**common, **inputs), cache)
    if outputs is None:
        return None
    files = {product.name: getattr(outputs, product.name) for product in PRODUCTS}
    return {name: None if file is None else Path(file) for name, file in files.items()}


def worker_of(settings: DatasetSettings) -> Any:
    """Return the pydra worker of a run."""
    if settings.worker == "slurm":
        require_usable(settings.slurm_args)
    return ForkserverWorker if settings.worker == "cf" else SerialWorker


def atlas_mask(atlas: Atlas, settings: DatasetSettings, submit: Any, cache: Path) -> Path:
    """Return the mask of the object in the atlas, on its grid. It is made once, before the scans need it."""
    task = Prepare(
        image=atlas.image,
        mask=atlas.mask,
        skull_stripped=atlas.skull_stripped,
        profile=settings.profile.name,
        device=settings.runtime.device,
    )
    result = submit(task, raise_errors=False)
    if result.errored:
        raise InputError(failure_reason(cache, task)[0])
    return Path(result.outputs.mask)


def _scans_at_a_time(atlases: Sequence[Atlas], masks: dict[str, Path], settings: DatasetSettings, waiting: int) -> int:
    """Return the number of scans at a time for which memory is enough, as the engine predicts it.

    Raises
    ------
    InputError
        If it is not enough for the number that the user wants, and no limit of memory was set.
    """
    method, scans = settings.method, settings.n_procs
    for atlas in atlases:
        fixed = _atlas_object(atlas, masks[atlas.label], settings)
        predicted = method.engine.memory_mb(fixed, method.settings, settings.runtime)
        if predicted is None:
            continue
        if settings.memory_mb is not None:
            fit = scans_that_fit(predicted.process, min(waiting, scans), settings.memory_mb)
            if fit < min(waiting, scans):
                need = predicted.process / 2**10
                log.info("%s at a time, because each needs about %.1f GiB", counted(fit, "scan"), need)
                scans = fit
        require_memory(predicted.process, min(waiting, scans))
        if predicted.device:
            require_memory(predicted.device, min(waiting, scans), device=True)
    return scans


def _atlas_object(atlas: Atlas, mask: Path, settings: DatasetSettings) -> Nifti1Image:
    """Return the atlas without its background."""
    image = load_image(atlas.image, "atlas")
    return foreground_only(image, load_mask(mask, image), settings.profile)


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
