"""Task: affine alignment of two images."""

import json
from pathlib import Path

from fileformats.generic import File
from pydra.compose import python

from nio_pydra import __version__


@python.define(outputs=["affine", "record"])
def AffineAlign(
    fixed: File,
    moving: File,
    fixed_mask: File,
    moving_mask: File,
    version: str = __version__,
    lesion_mask: File | None = None,
    seed: int = 0,
) -> tuple[File, File]:
    """Align a moving image to a fixed one.

    Parameters
    ----------
    fixed : File
        The atlas.
    moving : File
        The subject's T1w image.
    fixed_mask : File
        Brain mask on the fixed grid.
    moving_mask : File
        Brain mask on the moving grid.
    version : str
        Of the code that this task calls.
    lesion_mask : File | None
        Region of the moving image that has no counterpart.
    seed : int
        Of the optimizer's random sampling.

    Returns
    -------
    affine : File
        ITK composite .h5, fixed to moving.
    record : File
        JSON, what the alignment took.
    """
    from nio_pydra.engines.affine import align
    from nio_pydra.tasks.runtime import task_runtime

    affine = Path("affine.h5").absolute()
    record = align(
        Path(fixed),
        Path(moving),
        affine,
        fixed_mask=Path(fixed_mask),
        moving_mask=Path(moving_mask),
        lesion_mask=None if lesion_mask is None else Path(lesion_mask),
        runtime=task_runtime(seed=seed),
    )
    record_path = Path("affine_record.json").absolute()
    record_path.write_text(json.dumps(record))
    return affine, record_path
