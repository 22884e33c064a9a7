"""Task: an image and what belongs to it, checked, with its masks."""

from pathlib import Path

from fileformats.generic import File
from pydra.compose import python

from nio_pydra import __version__


@python.define(outputs=["mask", "lesion_mask"])
def Prepare(
    image: File,
    skull_stripped: bool,
    version: str = __version__,
    mask: File | None = None,
    labels: File | None = None,
    lesion_mask: File | None = None,
    profile: str = "brain",
    device: str = "auto",
) -> tuple[File, File | None]:
    """Check an image, its labels and its masks, and make the mask where there is none.

    Parameters
    ----------
    image : File
        3-D image.
    skull_stripped : bool
        Whether the image is zero outside the object; its non-zero voxels are then the mask.
    version : str
        Version of the code that this task calls.
    mask : File | None
        Mask to be used as it is.
    labels : File | None
        Label image that must lie on the image's grid.
    lesion_mask : File | None
        Mask of what has no counterpart in other images.
    profile : str
        What the image shows: a name of nio_pydra.profiles.PROFILES.
    device : str
        One of auto, cpu and cuda.

    Returns
    -------
    mask : File
        On the image's grid, 0 and 1.
    lesion_mask : File | None
        The same of the lesion.
    """
    from nio_pydra.engines.masks import prepare
    from nio_pydra.profiles import PROFILES
    from nio_pydra.tasks.inputs import scan_files, task_runtime

    scan = scan_files(image, mask=mask, labels=labels, lesion_mask=lesion_mask, skull_stripped=skull_stripped)
    shown = PROFILES[profile]
    prepared = prepare(scan, Path.cwd(), task_runtime(device), role=shown.suffix, profile=shown)
    return prepared.mask, prepared.lesion_mask
