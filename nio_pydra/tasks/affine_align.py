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
    profile: str = "brain",
    seed: int = 0,
) -> tuple[File, File]:
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
        Region of the moving image that has no counterpart, on its grid.
    profile : str
        What the images show: a name of nio_pydra.profiles.PROFILES.
    seed : int
        Random seed.

    Returns
    -------
    affine : File
        ITK composite .h5, fixed to moving.
    record : File
        JSON, what the alignment took.
    """
    from nio_pydra.engines.affine import align
    from nio_pydra.profiles import PROFILES
    from nio_pydra.tasks.inputs import scan_files, task_runtime

    affine, record = Path("affine.h5").absolute(), Path("affine_record.json").absolute()
    taken = align(
        scan_files(fixed, mask=fixed_mask),
        scan_files(moving, mask=moving_mask, lesion_mask=lesion_mask),
        affine,
        task_runtime(seed=seed),
        profile=PROFILES[profile],
    )
    record.write_text(json.dumps(taken))
    return affine, record
