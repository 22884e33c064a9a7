"""Task: the masks of an image, and first of all whether what belongs to the image can be used."""

from pathlib import Path

from fileformats.generic import File
from pydra.compose import python

from nio_pydra import __version__


@python.define(outputs=["mask", "lesion_mask"])
def BrainMask(
    image: File,
    skull_stripped: bool,
    version: str = __version__,
    given: File | None = None,
    labels: File | None = None,
    lesion: File | None = None,
    device: str = "auto",
) -> tuple[File, File | None]:
    """Check an image, its labels and its masks, and make the brain mask where there is none.

    The labels are checked here so that a wrong file is found before the registration, not after it. Masks are brought
    onto the image's grid.

    Parameters
    ----------
    image : File
        T1w image.
    skull_stripped : bool
        The image shows a brain only; its non-zero voxels are the mask.
    version : str
        Of the code that this task calls.
    given : File | None
        A brain mask to be used as it is.
    labels : File | None
        Label image that must lie on the image's grid.
    lesion : File | None
        Mask of what has no counterpart in other brains.
    device : str
        One of auto, cpu and cuda.

    Returns
    -------
    mask : File
        On the image's grid, 0 and 1.
    lesion_mask : File | None
        The same of the lesion.
    """
    import numpy as np

    from nio_pydra.engines.brain_mask import make_brain_mask
    from nio_pydra.errors import InputError
    from nio_pydra.spatial.images import load_image, load_labels, load_mask, same_grid, save_image
    from nio_pydra.spatial.transforms import Transform, resample
    from nio_pydra.tasks.runtime import task_runtime

    scan = load_image(Path(image), role="T1w")
    if labels is not None:
        load_labels(Path(labels), like=scan)

    def onto_scan(path: File, role: str, out: str) -> Path:
        mask = load_mask(Path(path), role=role)
        if not same_grid(mask, scan):  # fMRIPrep's masks lie on its reoriented copy of the scan
            mask = resample(mask, scan, Transform(()), "nearest")
        voxels = np.asanyarray(mask.dataobj)
        if not voxels.any():
            raise InputError(f"{path} ({role}) lies beside {image}: expected a mask in the space of that image.")
        return save_image(voxels, scan.affine, Path(out).absolute(), dtype=np.uint8)

    if (
        lesion is not None
        and not np.asanyarray(load_image(Path(lesion), "lesion mask", may_be_empty=True).dataobj).any()
    ):
        lesion = None  # lesion segmentation writes an empty mask where it finds none
    lesion_mask = None if lesion is None else onto_scan(lesion, "lesion mask", "lesion_mask.nii.gz")
    if given is not None:
        return onto_scan(given, "brain mask", "mask.nii.gz"), lesion_mask
    out = Path("mask.nii.gz").absolute()
    made = make_brain_mask(Path(image), out, skull_stripped=skull_stripped, runtime=task_runtime(device))
    return made, lesion_mask
