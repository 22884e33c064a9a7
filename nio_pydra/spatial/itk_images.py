"""Images in formats that ITK reads and nibabel does not: MetaImage and NRRD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.spatialimages import SpatialImage

from nio_pydra.spatial.lps import affine_from_itk

__all__ = ["is_of_itk", "read_by_itk"]

ENDINGS = (".mha", ".mhd", ".nrrd", ".nhdr")


def is_of_itk(path: Path) -> bool:
    """Return whether a file's name is that of a format read here."""
    return path.name.lower().endswith(ENDINGS)


def read_by_itk(path: Path) -> SpatialImage:
    """Read an image, with its place in RAS mm.

    Parameters
    ----------
    path : Path
        Existing file.

    Returns
    -------
    SpatialImage
        In the type of its voxels, but float32 for types of two bytes.

    Raises
    ------
    OSError
        If ITK cannot read the file.
    """
    import ants  # slow to import, and needed for few images

    try:
        found = ants.image_read(str(path), pixeltype=None)
        voxels = found.numpy()
    except (RuntimeError, ValueError, KeyError) as error:
        raise OSError(
            f"ITK cannot read it ({str(error).strip().splitlines()[-1] if str(error) else 'no reason'})"
        ) from None
    if voxels.ndim != 3:
        raise OSError(f"it has {voxels.ndim} dimensions, expected 3")
    affine = affine_from_itk(np.array(found.spacing), np.array(found.origin), np.array(found.direction))
    return SpatialImage(voxels, affine)
