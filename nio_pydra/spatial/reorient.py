"""Copies of images with an unambiguous header."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.openers import Opener
from nibabel.orientations import axcodes2ornt
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from nio_pydra.errors import InputError
from nio_pydra.spatial.headers import require_millimetres, require_rigid_axes
from nio_pydra.spatial.images import UNREADABLE
from nio_pydra.system.files import atomic_path

__all__ = ["reorient"]


def reorient(source: Path, target: Path, *, axes: str | None = None, keep: str | None = None) -> None:
    """Write a copy of a NIfTI file with equal qform and sform; the voxels are copied byte for byte.

    Parameters
    ----------
    source, target : Path
        ``.nii`` or ``.nii.gz``.
    axes : str, optional
        Directions of the three voxel axes, for example ``LAS``. The middle of the image becomes the origin.
    keep : {"qform", "sform"}, optional
        Form to keep if `axes` is not given.

    Raises
    ------
    InputError
        If the source is no NIfTI file in mm, lacks voxel sizes or the form to keep, or has a sform that shears; or if
        the target exists.
    """
    for path in (source, target):
        if not path.name.endswith((".nii", ".nii.gz")):
            raise InputError(f"{path}: expected a file named *.nii or *.nii.gz.")
    if target.exists():
        raise InputError(f"{target} exists: choose another name for the copy.")
    try:
        image = nib.load(source)
        with Opener(str(source), "rb") as stream:
            content = stream.read()
    except UNREADABLE as error:
        raise InputError(f"{source} cannot be read as a NIfTI image: {error}") from None
    if not isinstance(image, Nifti1Image):
        raise InputError(f"{source} is no NIfTI image in one file: convert it first.")
    # Unlike the image's own header, this one still has the scaling of the voxels.
    header = image.header_class.from_fileobj(BytesIO(content), check=False)
    require_millimetres(header, source, "image")
    shape, sizes = image.shape[:3], np.abs(np.asarray(header["pixdim"][1:4], float))
    if axes is not None:
        if not (np.isfinite(sizes) & (sizes > 0)).all():
            raise InputError(f"{source} gives voxel sizes of {sizes} mm: expected positive ones. Repair its pixdim.")
        affine = _centred(axes, sizes, shape)
    else:
        header["pixdim"][1:4] = sizes  # a negative size would turn an axis
        try:
            affine = (header.get_qform if keep == "qform" else header.get_sform)(coded=True)[0]
        except (HeaderDataError, ValueError):
            affine = None
        if affine is None or not np.isfinite(affine).all():
            raise InputError(f"{source} has no {keep} to keep: keep the other form, or give --axes.")
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        require_rigid_axes(affine, sizes, shape, source, "image")
    header["pixdim"][1:4] = sizes
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header.set_xyzt_units("mm", header.get_xyzt_units()[1])
    with atomic_path(target) as temporary, Opener(str(temporary), "wb") as stream:
        stream.write(header.binaryblock + content[len(header.binaryblock) :])


def _centred(axes: str, sizes: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a 4x4 affine, RAS mm, with voxels along `axes` and the origin in the middle of the grid."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(axcodes2ornt(tuple(axes))):
        affine[int(world), axis] = sign * sizes[axis]
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine
