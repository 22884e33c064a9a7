"""All scans of a dataset, each registered by the `Subject` workflow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan
from nio_pydra.bids.outputs import discard_leftovers, engine_desc, sink
from nio_pydra.bids.products import PRODUCTS, Destination
from nio_pydra.bids.records import Failure
from nio_pydra.engines.contract import Runtime, foreground_only
from nio_pydra.engines.memory import require_memory
from nio_pydra.engines.methods import Method
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.report.participant import write_participant_pages
from nio_pydra.spatial.images import load_image, load_mask
from nio_pydra.system.settings import plain
from nio_pydra.tasks import Prepare
from nio_pydra.tasks.inputs import code_version
from nio_pydra.workflows.cache import discard_unfinished, failure_reason, in_use
from nio_pydra.workflows.progress import subject_hooks
from nio_pydra.workflows.pydra_private import Submitter, stored_outputs, use_work_folder, warn_if_untried
from nio_pydra.workflows.subject import Subject
from nio_pydra.workflows.workers import ForkserverWorker, SerialWorker, SlurmWorker

__all__ = ["DatasetSettings", "Outcome", "register_dataset"]


@dataclass(frozen=True)
class DatasetSettings:
    """How the scans of a dataset are registered.

    Attributes
    ----------
    method : Method
        Engine and settings.
    runtime : Runtime
        Device, precision and seed. The number of threads is that of OMP_NUM_THREADS.
    skull_stripped : bool
        Whether every image is zero outside the object, whatever its sidecar says.
    worker : str
        ``debug`` (one after another), ``cf`` (processes) or ``slurm``.
    n_procs : int
        Number of scans at a time.
    labels_desc : str or None
        ``desc`` of the label images of the scans.
    profile : Profile
        What is registered.
    """

    method: Method
    runtime: Runtime
    skull_stripped: bool = False
    worker: str = "debug"
    n_procs: int = 1
    labels_desc: str | None = None
    profile: Profile = BRAIN


@dataclass(frozen=True)
class Outcome:
    """Result of one scan.

    Attributes
    ----------
    scan : Scan
        The scan.
    reason, details : str
        Why it failed, in a sentence and in full. Empty after a success.
    """

    scan: Scan
    reason: str = ""
    details: str = ""


def register_dataset(
    scans: Sequence[Scan], atlas: Atlas, settings: DatasetSettings, *, out_dir: Path, work_dir: Path
) -> list[Outcome]:
    """Register scans to an atlas. A scan that fails does not stop the others.

    Results that an earlier run with the same `work_dir` finished are used again.

    Parameters
    ----------
    scans : sequence of Scan
        Scans to register.
    atlas : Atlas
        Atlas to align them to.
    settings : DatasetSettings
        How to register them.
    out_dir : Path
        Folder for the derivatives. Those of a scan are written as soon as it is done.
    work_dir : Path
        Folder for pydra's cache.

    Returns
    -------
    list of Outcome
        In the order of `scans`.

    Raises
    ------
    InputError
        If no object is found in the atlas, the worker cannot be used, or memory is too small for so many scans at a
        time.
    """
    # A folder of its own, so that files of other programs in the work folder are not deleted.
    work_dir = work_dir.resolve() / "nio_pydra"
    work_dir.mkdir(parents=True, exist_ok=True)
    warn_if_untried()
    cache = use_work_folder(work_dir)
    with in_use(work_dir, discard_locks=settings.worker != "slurm") as alone:
        discard_unfinished(cache, alone=alone)
        outcomes = _register_all(scans, atlas, settings, out_dir, cache)
    _store_failures(outcomes, atlas, settings.method, out_dir)
    # Once more, with failures and beside the other scans of this run. Reading all records would cost every job of an
    # array as much as the whole dataset.
    ran = {f"sub-{scan.entities['subject']}" for scan in scans}
    write_participant_pages(out_dir, settings.profile, sorted(ran), alone=True)
    return outcomes


def _store_failures(outcomes: Sequence[Outcome], atlas: Atlas, method: Method, out_dir: Path) -> None:
    """Store why scans failed, for the group level, and delete what earlier runs stored of scans that are done."""
    desc = engine_desc(method.name)
    for outcome in outcomes:
        failure = Failure(outcome.scan.name, atlas.space, desc, method.name, method.preset, outcome.reason)
        if outcome.reason:
            failure.write(out_dir, outcome.details)
        else:
            failure.forget(out_dir)


def _register_all(
    scans: Sequence[Scan], atlas: Atlas, settings: DatasetSettings, out_dir: Path, cache: Path
) -> list[Outcome]:
    problems = {scan.name: problem for scan in scans if (problem := scan.problem or _unreadable(scan))}
    inputs = {scan.name: _scan_inputs(scan, atlas, settings, out_dir) for scan in scans if scan.name not in problems}
    for own in inputs.values():
        discard_leftovers(Destination(**own["destination"]))
    worker, arguments = _worker(settings)
    with Submitter(worker=worker, cache_root=cache, **arguments) as submit:
        mask = _atlas_mask(atlas, settings, submit, cache)
        common = _common_inputs(atlas, settings, mask)
        waiting = [own for own in inputs.values() if _stored_products(common, own, cache) is None]
        if waiting and settings.worker != "slurm":
            _require_memory(atlas, mask, settings, min(len(waiting), settings.n_procs))
        if waiting:
            _run_subjects(submit, common, waiting)
    return [
        Outcome(scan, problems[scan.name])
        if scan.name in problems
        else _outcome(scan, common, inputs[scan.name], cache)
        for scan in scans
    ]


def _unreadable(scan: Scan) -> str:
    """Return a sentence about a file of a scan that cannot be read. Empty where all can."""
    for path in (scan.image, scan.lesion, scan.mask, scan.labels):
        # Reading uses the rights of the effective user, which only some systems can check.
        if path is not None and not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            if path.exists():
                return f"{path}: no permission to read it, change its permissions."
            return f"{path}: no such file; is it a link to content that was not fetched?"
    return ""


def _run_subjects(submit: Any, common: dict[str, Any], inputs: list[dict[str, Any]]) -> None:
    """Run the `Subject` workflow for each scan, as a split of one workflow."""
    keys = tuple(inputs[0])
    batch = Subject(**common).split(keys, **{key: [own[key] for own in inputs] for key in keys})
    submit(batch, hooks=subject_hooks(), raise_errors=False)


def _outcome(scan: Scan, common: dict[str, Any], inputs: dict[str, Any], cache: Path) -> Outcome:
    products = _stored_products(common, inputs, cache)
    if products is None:
        return Outcome(scan, *failure_reason(cache, Subject(**common, **inputs)))
    try:
        # Also for a scan found in the cache: its derivatives may have been deleted since.
        sink(products, Destination(**inputs["destination"]))
    except (InputError, OSError) as error:
        return Outcome(scan, str(error))
    return Outcome(scan)


def _stored_products(common: dict[str, Any], inputs: dict[str, Any], cache: Path) -> dict[str, Path | None] | None:
    """Return the results of a scan from the cache. None where it is not done."""
    outputs = stored_outputs(Subject(**common, **inputs), cache)
    if outputs is None:
        return None
    files = {product.name: getattr(outputs, product.name) for product in PRODUCTS}
    return {name: None if file is None else Path(file) for name, file in files.items()}


def _worker(settings: DatasetSettings) -> tuple[Any, dict[str, Any]]:
    if settings.worker == "slurm":
        if shutil.which("sbatch") is None:
            raise InputError("The worker slurm needs the command sbatch, which is absent: run this on a SLURM host.")
        return SlurmWorker, {}
    return ForkserverWorker if settings.worker == "cf" else SerialWorker, {"n_procs": settings.n_procs}


def _atlas_mask(atlas: Atlas, settings: DatasetSettings, submit: Any, cache: Path) -> Path:
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


def _require_memory(atlas: Atlas, mask: Path, settings: DatasetSettings, scans: int) -> None:
    """Raise `InputError` where the engine predicts too little memory for so many scans at a time."""
    image, method = load_image(atlas.image, "atlas"), settings.method
    fixed = foreground_only(image, load_mask(mask, image), settings.profile)
    predicted = method.engine.memory_mb(fixed, method.settings, settings.runtime)
    if predicted is None:
        return
    require_memory(predicted.process, scans)
    if predicted.device:
        require_memory(predicted.device, scans, device=True)


def _common_inputs(atlas: Atlas, settings: DatasetSettings, atlas_mask: Path) -> dict[str, Any]:
    method = settings.method
    return {
        "atlas": atlas.image.absolute(),
        "atlas_mask": atlas_mask.absolute(),
        "labels_of_atlas": None if atlas.labels is None else atlas.labels.absolute(),
        "engine": method.name,
        "preset": method.preset,
        "settings": plain(method.settings),
        "profile": settings.profile.name,
        "device": settings.runtime.device,
        "precision": settings.runtime.precision,
        "seed": settings.runtime.seed,
        "method_version": f"{code_version()}+{method.fingerprint()}",
    }


def _scan_inputs(scan: Scan, atlas: Atlas, settings: DatasetSettings, out_dir: Path) -> dict[str, Any]:
    skull_stripped = scan.skull_stripped or settings.skull_stripped
    destination = Destination(
        out_dir=str(out_dir.resolve()),
        entities=scan.entities,
        atlas=atlas.label,
        space=atlas.space,
        desc=engine_desc(settings.method.name),
        source=f"bids:raw:{scan.relative}",
        atlas_reference=atlas.reference,
        skull_stripped=skull_stripped,
        labels_desc=settings.labels_desc if scan.labels else None,
        labels_source=scan.labels.as_uri() if scan.labels else None,
        profile=settings.profile.name,
    )
    return {
        "scan": scan.image,
        "skull_stripped": skull_stripped,
        "mask": scan.mask,
        "lesion_mask": scan.lesion,
        "own_labels": scan.labels,
        "destination": asdict(destination),
    }
