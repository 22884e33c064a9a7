"""Task: affine alignment of two images."""

import json
from pathlib import Path

from fileformats.application import Json
from fileformats.generic import File
from pydra.compose import python

from nio_pydra.tasks.inputs import CODE_VERSION, scan_files, task_runtime


@python.define(outputs=["affine", "record"])
def AffineAlign(
    fixed: File,
    moving: File,
    fixed_mask: File,
    moving_mask: File,
    version: str = CODE_VERSION,
    lesion_mask: File | None = None,
    profile: str = "brain",
    seed: int = 0,
) -> tuple[File, Json]:
    """Align a moving image to a fixed one.

    Parameters
    ----------
    fixed : File
        Image to align to.
    moving : File
        Image to be aligned.
    fixed_mask : File
        Mask of the object on the fixed grid.
    moving_mask : File
        Mask of the object on the moving grid.
    version : str
        Version of the code that this task calls.
    lesion_mask : File | None
        Region of the moving image without a counterpart in the fixed one, on its grid.
    profile : str
        What the images show, by its name in nio_pydra.profiles.PROFILES.
    seed : int
        Random seed.

    Returns
    -------
    affine : File
        ITK composite .h5, fixed to moving points.
    record : Json
        Time that the alignment took, and its number of starts.
    """
    from nio_pydra.engines.affine import align
    from nio_pydra.profiles import PROFILES

    affine, record = Path("affine.h5").absolute(), Path("affine_record.json").absolute()
    measured = align(
        scan_files(fixed, mask=fixed_mask),
        scan_files(moving, mask=moving_mask, lesion_mask=lesion_mask),
        affine,
        task_runtime(seed=seed),
        profile=PROFILES[profile],
    )
    record.write_text(json.dumps(measured))
    return affine, record
