"""Task: registration of two images by one engine."""

import json
from pathlib import Path

from fileformats.generic import File
from pydra.compose import python

from nio_pydra import __version__


@python.define(outputs=["forward_xfm", "inverse_xfm", "warped", "record"])
def Register(
    fixed: File,
    moving: File,
    affine: File,
    affine_record: File,
    engine: str,
    preset: str,
    version: str = __version__,
    weights: File | None = None,
    fixed_mask: File | None = None,
    moving_mask: File | None = None,
    lesion_mask: File | None = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
) -> tuple[File, File, File, File]:
    """Register a moving image to a fixed one, from their affine alignment on.

    Parameters
    ----------
    fixed : File
        The atlas.
    moving : File
        The subject's T1w image.
    affine : File
        ITK composite .h5, fixed to moving.
    affine_record : File
        JSON of the affine alignment, whose time goes into the record.
    engine : str
        One of nio_m, nio, io, lapirn, affine and syn.
    preset : str
        Of the engine.
    version : str
        Of the code that this task calls, and of the weights.
    weights : File | None
        Network weights; default: those of the package.
    fixed_mask : File | None
        Brain mask on the fixed grid.
    moving_mask : File | None
        Brain mask on the moving grid.
    lesion_mask : File | None
        Region of the moving image that has no counterpart.
    precision : str
        One of auto and float32.
    device : str
        One of auto, cpu and cuda.
    seed : int
        Random seed.

    Returns
    -------
    forward_xfm : File
        ITK composite .h5, fixed to moving points.
    inverse_xfm : File
        Its inverse.
    warped : File
        Moving image on the fixed grid.
    record : File
        JSON.
    """
    from nio_pydra.engines.registration import register
    from nio_pydra.tasks.runtime import task_runtime

    found = register(
        Path(fixed),
        Path(moving),
        Path(affine),
        Path.cwd(),
        engine=engine,
        preset=preset,
        weights=None if weights is None else Path(weights),
        fixed_mask=None if fixed_mask is None else Path(fixed_mask),
        moving_mask=None if moving_mask is None else Path(moving_mask),
        lesion_mask=None if lesion_mask is None else Path(lesion_mask),
        affine_record=json.loads(Path(affine_record).read_text()),
        runtime=task_runtime(device, seed, precision),
    )
    return found.forward_xfm, found.inverse_xfm, found.warped, found.record
