"""Workflow: all scans of a dataset, each by the `Subject` workflow."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nio_pydra import __version__
from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan, scan_name
from nio_pydra.bids.outputs import Destination, Products, discard_leftovers, engine_desc, sink
from nio_pydra.errors import InputError

__all__ = ["DatasetSettings", "Outcome", "register_dataset"]

log = logging.getLogger("nio_pydra")
NO_NETWORK = ("affine", "syn")


@dataclass(frozen=True)
class DatasetSettings:
    """How the scans of a dataset are registered.

    Parameters
    ----------
    engine, preset : str
    weights : pathlib.Path or None
        None: the weights of the package.
    device : str
        auto, cpu or cuda.
    seed : int
    skull_stripped : bool
        Take every image as a brain only, whatever its sidecar says.
    worker : str
        ``debug`` (one after another), ``cf`` (processes) or ``slurm``.
    n_procs : int
        Processes of ``cf``.
    labels_desc : str or None
        ``desc`` of the scans' label images.
    """

    engine: str
    preset: str
    weights: Path | None = None
    device: str = "auto"
    seed: int = 0
    skull_stripped: bool = False
    worker: str = "debug"
    n_procs: int = 1
    labels_desc: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one scan.

    Parameters
    ----------
    scan : Scan
    files : list of pathlib.Path
        Its derivatives; empty after a failure.
    reason, details : str
        Why it failed, in a sentence and in full; empty after a success.
    """

    scan: Scan
    files: list[Path]
    reason: str = ""
    details: str = ""


def register_dataset(
    scans: Sequence[Scan], atlas: Atlas, settings: DatasetSettings, *, bids_dir: Path, out_dir: Path, work_dir: Path
) -> list[Outcome]:
    """Register scans to an atlas; one that fails leaves the others done.

    What an earlier run with the same `work_dir` finished is taken from there.

    Parameters
    ----------
    scans : sequence of Scan
    atlas : Atlas
    settings : DatasetSettings
    bids_dir : pathlib.Path
        Root that the scans' BIDS URIs are relative to.
    out_dir : pathlib.Path
        Takes the derivatives, each scan's as soon as it is done.
    work_dir : pathlib.Path
        Keeps pydra's cache.

    Returns
    -------
    list of Outcome
        In the order of `scans`.

    Raises
    ------
    InputError
        If the atlas has no brain, or the worker cannot be used.
    """
    # Before pydra is imported: it shall neither ask a server for its newest version nor write into the home folder.
    os.environ.setdefault("NO_ET", "1")
    os.environ["PYDRA_HASH_CACHE"] = str((work_dir / "hashes").resolve())
    from pydra.engine.hooks import TaskHooks
    from pydra.engine.result import load_result
    from pydra.engine.submitter import Submitter

    from nio_pydra.workflows.cache import discard_unfinished, failure_reason

    cache = (work_dir / "pydra").resolve()
    discard_unfinished(cache)
    own = [_scan_inputs(scan, atlas, settings, bids_dir, out_dir) for scan in scans]
    for inputs in own:
        discard_leftovers(Destination(**inputs["destination"]))
    worker, arguments = _worker(settings)
    with Submitter(worker=worker, cache_root=cache, **arguments) as submit:
        common = _common_inputs(atlas, settings, _atlas_mask(atlas, settings, submit, cache))
        from nio_pydra.workflows.subject import Subject

        subjects = [Subject(**common, **inputs) for inputs in own]
        keys = list(own[0])
        batch = Subject(**common).split(tuple(keys), **{key: [inputs[key] for inputs in own] for key in keys})
        submit(
            batch,
            hooks=TaskHooks(pre_run_task=_say_started, post_run_task=_say_failed, post_run=_say_done),
            raise_errors=False,
        )
    outcomes = []
    for scan, subject, inputs in zip(scans, subjects, own, strict=True):
        result = load_result(subject._checksum, [cache])
        if result is None or result.errored or result.outputs is None:
            outcomes.append(Outcome(scan, [], *failure_reason(cache, subject._checksum)))
            continue
        # Also for a scan found in the cache, whose derivatives somebody may have deleted since.
        found = result.outputs
        products = Products(**{name: _path(getattr(found, name)) for name in Products.__dataclass_fields__})
        outcomes.append(Outcome(scan, sink(products, Destination(**inputs["destination"]))))
    return outcomes


def _worker(settings: DatasetSettings) -> tuple[Any, dict[str, Any]]:
    from nio_pydra.workflows.workers import ForkserverWorker, SerialWorker, SlurmWorker

    if settings.worker == "slurm":
        if shutil.which("sbatch") is None:
            raise InputError("The worker slurm needs the command sbatch, which is not there: run this on a SLURM host.")
        return SlurmWorker, {}
    if settings.worker == "cf":
        return ForkserverWorker, {"n_procs": settings.n_procs}
    return SerialWorker, {}


def _atlas_mask(atlas: Atlas, settings: DatasetSettings, submit: Any, cache: Path) -> Path:
    """Return the atlas's brain mask; made once, before the scans need it."""
    if atlas.mask is not None:
        return atlas.mask
    from nio_pydra.tasks import BrainMask
    from nio_pydra.workflows.cache import failure_reason

    task = BrainMask(
        image=atlas.image,
        skull_stripped=atlas.skull_stripped or settings.skull_stripped,
        device=settings.device,
        version=__version__,
    )
    result = submit(task, raise_errors=False)
    if result.errored:
        raise InputError(failure_reason(cache, task._checksum)[0])
    return Path(result.outputs.mask)


def _common_inputs(atlas: Atlas, settings: DatasetSettings, atlas_mask: Path) -> dict[str, Any]:
    network_version = __version__
    if settings.engine not in NO_NETWORK and settings.weights is None:
        from nio_pydra.networks.checkpoints import weights_digest

        network_version += f"+{weights_digest()[:16]}"
    return {
        "atlas": atlas.image.resolve(),
        "atlas_mask": atlas_mask.resolve(),
        "labels_of_atlas": None if atlas.labels is None else atlas.labels.resolve(),
        "engine": settings.engine,
        "preset": settings.preset,
        "weights": None if settings.weights is None else settings.weights.resolve(),
        "device": settings.device,
        "seed": settings.seed,
        "version": __version__,
        "network_version": network_version,
    }


def _scan_inputs(scan: Scan, atlas: Atlas, settings: DatasetSettings, bids_dir: Path, out_dir: Path) -> dict[str, Any]:
    destination = Destination(
        out_dir=str(out_dir.resolve()),
        entities=scan.entities,
        atlas=atlas.name,
        desc=engine_desc(settings.engine),
        source=f"bids:raw:{scan.t1w.resolve().relative_to(bids_dir.resolve())}",
        atlas_reference=atlas.reference,
        labels_desc=settings.labels_desc if scan.labels else None,
        labels_source=scan.labels.resolve().as_uri() if scan.labels else None,
    )
    return {
        "t1w": scan.t1w.resolve(),
        "skull_stripped": scan.skull_stripped or settings.skull_stripped,
        "brain_mask": None if scan.mask is None else scan.mask.resolve(),
        "own_labels": None if scan.labels is None else scan.labels.resolve(),
        "destination": asdict(destination),
    }


def _path(value: Any) -> Path | None:
    return None if value is None else Path(value)


def _name(job: Any) -> str | None:
    """Name the scan of a job of the `Subject` workflow; None for the workflow around these."""
    destination = getattr(job.task, "destination", None)
    return None if destination is None else scan_name(destination["entities"])


def _say_started(job: Any) -> None:
    if name := _name(job):
        log.info("%s: started", name)


def _say_failed(job: Any, result: Any) -> None:
    if result.errored and (name := _name(job)):
        log.info("%s: failed", name)


def _say_done(job: Any, result: Any) -> None:
    """Run after the result was stored: from here on a killed run does not repeat this scan."""
    if name := _name(job):
        log.info("%s: done", name)
