"""Atlases of a run: their masks, and how many scans can be registered to them at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nibabel.nifti1 import Nifti1Image

from nio_pydra.bids.atlas import Atlas
from nio_pydra.engines.contract import foreground_only
from nio_pydra.engines.memory import UNKNOWN_MB, require_memory, scans_that_fit
from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_image, load_mask
from nio_pydra.system.wording import counted
from nio_pydra.tasks import Prepare
from nio_pydra.workflows.cache import failure_reason
from nio_pydra.workflows.settings import DatasetSettings

__all__ = ["atlas_mask", "atlas_object", "scans_at_a_time"]

log = logging.getLogger("nio_pydra")


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


def atlas_object(atlas: Atlas, mask: Path, settings: DatasetSettings) -> Nifti1Image:
    """Return the atlas without its background."""
    image = load_image(atlas.image, "atlas")
    return foreground_only(image, load_mask(mask, image), settings.profile)


def scans_at_a_time(atlases: Sequence[Atlas], masks: dict[str, Path], settings: DatasetSettings, waiting: int) -> int:
    """Return the number of scans at a time for which memory is enough, as the engine predicts it.

    For an engine that predicts nothing, a limit that the user set is met with a guess, and nothing is refused.

    Raises
    ------
    InputError
        If it is not enough for the number that the user wants, and no limit of memory was set.
    """
    method, scans = settings.method, settings.n_procs
    for atlas in atlases:
        fixed = atlas_object(atlas, masks[atlas.label], settings)
        predicted = method.engine.memory_mb(fixed, method.settings, settings.runtime)
        if settings.memory_mb is not None:
            need = UNKNOWN_MB if predicted is None else predicted.process
            fit = scans_that_fit(need, min(waiting, scans), settings.memory_mb)
            if fit < min(waiting, scans):
                log.info("%s at a time, because each needs about %.1f GiB", counted(fit, "scan"), need / 2**10)
                scans = fit
        if predicted is None:
            continue
        require_memory(predicted.process, min(waiting, scans))
        if predicted.device:
            require_memory(predicted.device, min(waiting, scans), device=True)
    return scans
