"""Reading and writing of images, with a clear message for one that cannot be used."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import ArrayLike, DTypeLike, NDArray

from nio_pydra.errors import InputError
from nio_pydra.spatial.finite import require_finite
from nio_pydra.spatial.headers import require_one_placement, same_placement
from nio_pydra.spatial.itk_images import is_of_itk, read_by_itk
from nio_pydra.system.files import atomic_path

__all__ = ["UNREADABLE", "load_image", "load_labels", "load_mask", "same_grid", "save_image"]

UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)
"""Errors of nibabel for a file that it cannot read."""
#: Largest distance, in mm, between the voxels of two images that still lie on one grid.
GRID_TOLERANCE_MM = 1e-2
#: Smallest and largest label, as doubles, because float32 cannot hold them exactly.
LABELS = float(np.iinfo(np.int32).min), float(np.iinfo(np.int32).max)


def load_image(path: str | os.PathLike[str], role: str = "image", *, may_be_empty: bool = False) -> Nifti1Image:
    """Read a 3-D scan and check that it can be used.

    Parameters
    ----------
    path : path-like
        NIfTI or another format that nibabel reads, compressed or not; or MetaImage or NRRD.
    role : str
        Role of the file ("T1w", "atlas", ...), for messages.
    may_be_empty : bool
        Whether an image of zeros is accepted.

    Returns
    -------
    Nifti1Image
        float32 voxels ``(X, Y, Z)``, voxel-to-world affine in RAS mm, and the file name.

    Raises
    ------
    InputError
        If the file is missing, empty or truncated; if the image is not 3-D, is zero everywhere or has NaN or infinite
        voxels; if its affine cannot be inverted, or its header is ambiguous (:func:`require_one_placement`).
    """
    path = Path(path)
    affine, data = _read(path, role)
    data = data.astype(np.float32)
    bad = int(data.size - np.isfinite(data).sum())
    if bad:
        raise InputError(
            f"{path} ({role}) has {bad} NaN or infinite voxels: expected finite intensities. "
            "Repair the image first, for example by setting them to 0."
        )
    if not may_be_empty and not data.any():
        raise InputError(f"{path} ({role}) is zero everywhere: expected a scan. Is it the right file?")
    loaded = Nifti1Image(data, affine)
    loaded.file_map["image"].filename = str(path)  # for messages; set_filename refuses names of other formats
    return loaded


def load_labels(path: str | os.PathLike[str], like: Nifti1Image | None = None, role: str = "labels") -> Nifti1Image:
    """Read a label map as int32 and check that it lies on the grid of `like`.

    Raises
    ------
    InputError
        As :func:`load_image`, and if values are not whole numbers or do not fit into int32, or the grid differs.
    """
    path = Path(path)
    affine, voxels = _read(path, role)
    whole = np.rint(voxels)
    if not np.isfinite(voxels).all() or np.abs(voxels - whole).max(initial=0) > 1e-3:
        raise InputError(f"{path} ({role}) has values that are not whole numbers: expected a label map.")
    if whole.size and not LABELS[0] <= float(whole.min()) <= float(whole.max()) <= LABELS[1]:
        raise InputError(
            f"{path} ({role}) has labels from {whole.min():.0f} to {whole.max():.0f}: expected numbers "
            f"from {LABELS[0]:.0f} to {LABELS[1]:.0f}. Give the labels smaller numbers."
        )
    return _on_grid_of(like, Nifti1Image(whole.astype(np.int32), affine), path, role)


def load_mask(path: str | os.PathLike[str], like: Nifti1Image | None = None, role: str = "mask") -> Nifti1Image:
    """Read a mask as uint8, 1 where the file has more than 0.5, and check that it lies on the grid of `like`.

    Raises
    ------
    InputError
        As :func:`load_image`, and if the mask is empty or the grid differs.
    """
    path = Path(path)
    affine, voxels = _read(path, role)
    if not np.isfinite(voxels).all():
        raise InputError(f"{path} ({role}) has NaN or infinite voxels: expected 0 and 1. Set them to 0.")
    mask = Nifti1Image((voxels > 0.5).astype(np.uint8), affine)
    if not np.asanyarray(mask.dataobj).any():
        raise InputError(f"{path} ({role}) is empty: expected at least one voxel above 0.5.")
    return _on_grid_of(like, mask, path, role)


def same_grid(a: Nifti1Image, b: Nifti1Image) -> bool:
    """Return whether two images have the same shape and the same voxel positions.

    Positions can differ by a hundredth of a millimetre and by the rounding of a qform (:func:`same_placement`).
    """
    return a.shape == b.shape and same_placement(a.affine, b.affine, b.shape, GRID_TOLERANCE_MM)


def save_image(
    array: ArrayLike, affine: NDArray[np.float64], path: str | os.PathLike[str], dtype: DTypeLike = np.float32
) -> Path:
    """Write a NIfTI file, whole or not at all, with equal qform and sform in scanner space.

    Parameters
    ----------
    array : array-like
        Voxels ``(X, Y, Z)``.
    affine : ndarray
        4x4, voxel to world, RAS mm.
    path : path-like
        File to write.
    dtype : dtype-like
        Type of the voxels on disk.

    Raises
    ------
    ComputationError
        If a voxel is NaN or infinite.
    InputError
        If the file cannot be written.
    """
    require_finite(np.asarray(array), str(path))
    image = Nifti1Image(np.asarray(array).astype(dtype), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
    return Path(path)


def _on_grid_of(like: Nifti1Image | None, image: Nifti1Image, path: Path, role: str) -> Nifti1Image:
    """Return a map of voxels if it lies on the grid of its image."""
    if like is None or same_grid(image, like):
        return image
    raise InputError(
        f"{path} ({role}) has shape {image.shape} and another position or voxel size than its image of shape "
        f"{like.shape}: expected the same grid. Resample it onto its image (nearest neighbour)."
    )


def _read(path: Path, role: str) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return the affine of a 3-D image and its voxels, in the type of the file."""
    if not path.is_file():
        raise InputError(f"{path} ({role}): no such file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} ({role}) is empty (0 bytes): expected an image. Fetch its content again.")
    try:
        image = read_by_itk(path) if is_of_itk(path) else nib.load(path)
    except UNREADABLE as error:
        raise InputError(f"{path} ({role}) cannot be read as an image: {error}") from None
    if not isinstance(image, SpatialImage):
        raise InputError(f"{path} ({role}) is not a volume: expected a 3-D image.")
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        hint = "Is it a time series? Give one volume." if len(image.shape) > 3 else "Is it a localizer?"
        raise InputError(f"{path} ({role}) has shape {image.shape}: expected a 3-D image. {hint}")
    affine = image.affine
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise InputError(
            f"{path} ({role}) has a voxel-to-world matrix that cannot be inverted: expected voxel sizes and "
            "directions in its header. Repair its sform/qform."
        )
    require_one_placement(image, path, role)
    try:
        data = np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        raise InputError(f"{path} ({role}) is truncated or damaged: {error}. Fetch the file again.") from None
    if data.dtype.names or np.iscomplexobj(data):
        raise InputError(f"{path} ({role}) holds {data.dtype} voxels: expected numbers.")
    return affine, data.reshape(data.shape[:3])
