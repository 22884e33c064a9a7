"""Workflow: one scan, from its file to its affine alignment; and its run for several scans."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fileformats.generic import File
from pydra.compose import workflow

from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan
from nio_pydra.engines.contract import ScanFiles
from nio_pydra.tasks.inputs import CODE_VERSION
from nio_pydra.training.adaptation import Aligned
from nio_pydra.workflows.atlases import atlas_mask
from nio_pydra.workflows.cache import failure_reason
from nio_pydra.workflows.outcomes import unreadable
from nio_pydra.workflows.pydra_private import Submitter, stored_outputs
from nio_pydra.workflows.settings import DatasetSettings, worker_of
from nio_pydra.workflows.subject import add_alignment
from nio_pydra.workflows.work_folder import opened

__all__ = ["Align", "align_scans"]

log = logging.getLogger("nio_pydra")


@workflow.define(
    outputs={
        "mask": workflow.out(type=File),
        "lesion_mask": workflow.out(type=File | None, default=None),
        "affine": workflow.out(type=File),
    }
)
def Align(
    scan: File,
    atlas: File,
    atlas_mask: File,
    skull_stripped: bool = False,
    mask: File | None = None,
    lesion_mask: File | None = None,
    own_labels: File | None = None,
    profile: str = "brain",
    device: str = "auto",
    seed: int = 0,
    version: str = CODE_VERSION,
):
    """Align a scan to the atlas by an affine. The tasks are those of `Subject`, which finds their results in the cache.

    Parameters
    ----------
    scan, atlas : File
        Image to be aligned, and atlas image.
    atlas_mask : File
        Mask of the object on the atlas's grid.
    skull_stripped : bool
        Whether the scan is zero outside the object.
    mask, lesion_mask, own_labels : File | None
        Masks and label image of the scan.
    profile : str
        What is registered, by its name in nio_pydra.profiles.PROFILES.
    device : str
        One of auto, cpu and cuda.
    seed : int
        Random seed.
    version : str
        Version of the code: the workflow's own results are kept in the cache as well.

    Returns
    -------
    mask : File
        Mask of the object on the scan's grid.
    lesion_mask : File | None
        Mask of the lesion on that grid.
    affine : File
        ITK affine from points of the atlas to points of the scan.
    """
    given = {"skull_stripped": skull_stripped, "mask": mask, "labels": own_labels, "lesion_mask": lesion_mask}
    masked, aligned, _ = add_alignment(scan, (atlas, atlas_mask), given, profile=profile, device=device, seed=seed)
    return masked.mask, masked.lesion_mask, aligned.affine


def align_scans(
    scans: Sequence[Scan], wanted: int, atlas: Atlas, settings: DatasetSettings, work_dir: Path
) -> tuple[ScanFiles, list[Aligned]]:
    """Align the first scans that can be, as `register_dataset` with the same work folder does it afterwards.

    Parameters
    ----------
    scans : sequence of Scan
        In the order in which they are tried. One that fails is named, and the next one takes its place.
    wanted : int
        Number of scans to align.
    atlas : Atlas
        Atlas to align them to.
    settings : DatasetSettings
        Runtime, worker and profile; the method is not looked at.
    work_dir : Path
        Folder for pydra's cache.

    Returns
    -------
    atlas : ScanFiles
        The atlas and its mask.
    aligned : list of Aligned
        At most `wanted`.

    Raises
    ------
    InputError
        If no object is found in the atlas.
    """
    done: list[Aligned] = []
    left = list(scans)
    with (
        opened(work_dir) as cache,
        Submitter(worker=worker_of(settings), cache_root=cache, n_procs=settings.n_procs) as submit,
    ):
        mask = atlas_mask(atlas, settings, submit, cache).absolute()
        while left and len(done) < wanted:
            batch = [left.pop(0) for _ in left[: wanted - len(done)]]
            done += _aligned(batch, (atlas, mask), settings, submit, cache)
    return ScanFiles(atlas.image.absolute(), mask), done


def _aligned(
    batch: Sequence[Scan], atlas: tuple[Atlas, Path], settings: DatasetSettings, submit: Any, cache: Path
) -> list[Aligned]:
    common = {
        "atlas": atlas[0].image.absolute(),
        "atlas_mask": atlas[1],
        "profile": settings.profile.name,
        "device": settings.runtime.device,
        "seed": settings.runtime.seed,
    }
    inputs: dict[str, dict[str, Any]] = {}
    for scan in batch:
        if problem := scan.problem or unreadable(scan):
            log.warning("%s is left out: %s", scan.name, problem)
            continue
        inputs[scan.name] = {
            "scan": scan.image,
            "skull_stripped": scan.skull_stripped,
            "mask": scan.mask,
            "lesion_mask": scan.lesion,
            "own_labels": scan.labels,
        }
    waiting: dict[str, dict[str, Any]] = {}
    for name, own in list(inputs.items()):
        try:
            if stored_outputs(Align(**common, **own), cache) is None:
                waiting[name] = own
        except OSError as error:  # pydra reads all of a file
            log.warning("%s is left out: %s", name, error.strerror or error)
            del inputs[name]
    if waiting:
        keys = tuple(next(iter(waiting.values())))
        split = Align(**common).split(keys, **{key: [own[key] for own in waiting.values()] for key in keys})
        submit(split, raise_errors=False)
    found = []
    for name, own in inputs.items():
        outputs = stored_outputs(Align(**common, **own), cache)
        if outputs is None:
            log.warning("%s is left out: %s", name, failure_reason(cache, Align(**common, **own))[0])
            continue
        lesion = None if outputs.lesion_mask is None else Path(outputs.lesion_mask)
        files = ScanFiles(own["scan"], Path(outputs.mask), lesion_mask=lesion)
        found.append(Aligned(files, Path(outputs.affine)))
    return found
