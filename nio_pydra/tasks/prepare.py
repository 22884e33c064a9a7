"""Task: check of an image and its masks."""

from pathlib import Path

from fileformats.generic import File
from fileformats.medimage import NiftiGz
from pydra.compose import python

from nio_pydra.tasks.inputs import CODE_VERSION, scan_files, task_runtime


@python.define(outputs=["mask", "lesion_mask"])
def Prepare(
    image: File,
    skull_stripped: bool = False,
    version: str = CODE_VERSION,
    mask: File | None = None,
    labels: File | None = None,
    lesion_mask: File | None = None,
    profile: str = "brain",
    device: str = "auto",
) -> tuple[NiftiGz, NiftiGz | None]:
    """Check an image, its labels and its masks, and make a mask where none is given.

    Parameters
    ----------
    image : File
        3-D image.
    skull_stripped : bool
        Whether the image is zero outside the object. Its non-zero voxels, with holes filled, are then the mask.
    version : str
        Version of the code that this task calls.
    mask : File | None
        Mask of the object, in the space of the image.
    labels : File | None
        Label image. It must have the image's grid.
    lesion_mask : File | None
        Mask of the region without a counterpart in other images, in the space of the image.
    profile : str
        What the image shows, by its name in nio_pydra.profiles.PROFILES.
    device : str
        One of auto, cpu and cuda.

    Returns
    -------
    mask : NiftiGz
        Mask of the object on the image's grid, 0 and 1.
    lesion_mask : NiftiGz | None
        Mask of the lesion on that grid. None where there is no lesion.
    """
    from nio_pydra.engines.masks import prepare
    from nio_pydra.profiles import PROFILES

    scan = scan_files(image, mask=mask, labels=labels, lesion_mask=lesion_mask, skull_stripped=skull_stripped)
    kind = PROFILES[profile]
    prepared = prepare(scan, Path.cwd(), task_runtime(device), role=kind.suffix, profile=kind)
    return prepared.mask, prepared.lesion_mask
