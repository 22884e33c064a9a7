"""Task: mask with its axes in the order RAS."""

from pathlib import Path

from fileformats.generic import File
from pydra.compose import python

from nio_pydra.tasks.inputs import CODE_VERSION


@python.define(outputs=["conformed"])
def ConformMask(mask: File, version: str = CODE_VERSION) -> File:
    """Turn a mask onto the grid that fMRIPrep makes of its scan.

    Parameters
    ----------
    mask : File
        Mask of a scan, on its grid.
    version : str
        Version of the code that this task calls.

    Returns
    -------
    conformed : File
        The same mask, its axes in the order RAS.
    """
    from nio_pydra.engines.masks import conform_mask

    return conform_mask(Path(mask), Path("conformed_mask.nii.gz").absolute())
