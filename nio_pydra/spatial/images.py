"""Images in and out, refused with a clear sentence where they cannot be used."""

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
from nio_pydra.system.files import atomic_path

__all__ = ["load_image", "load_labels", "load_mask", "same_grid", "save_image"]

#: Largest disagreement of two voxel-to-world matrices that still counts as one grid, in mm.
GRID_TOLERANCE_MM = 1e-2
#: Smallest and largest label; as doubles, since a float32 cannot hold them exactly.
LABELS = float(np.iinfo(np.int32).min), float(np.iinfo(np.int32).max)


def load_image(path: str | os.PathLike[str], role: str = "image", *, may_be_empty: bool = False) -> Nifti1Image:
    """Read a 3-D scan, whole and usable.

    Parameters
    ----------
    path : path-like
        NIfTI (or any format nibabel reads), compressed or not.
    role : str
        What the file is for the user ("T1w", "atlas", ...), named in errors.
    may_be_empty : bool
        Whether zero everywhere is accepted.

    Returns
    -------
    Nifti1Image
        float32 voxels ``(X, Y, Z)``, voxel-to-world affine in RAS mm; it knows its file name.

    Raises
    ------
    InputError
        Missing, empty, truncated, not 3-D, without a usable affine, placed in more than one way or in none by its
        header (:func:`require_one_placement`), with NaN or infinite voxels, or all zero.
    """
    path = Path(path)
    image = _read(path, role)
    data = _voxels(image, path, role).astype(np.float32)
    bad = int(data.size - np.isfinite(data).sum())
    if bad:
        raise InputError(
            f"{path} ({role}) has {bad} NaN or infinite voxels: expected finite intensities. "
            "Repair the image first, for example by setting them to 0."
        )
    if not may_be_empty and not data.any():
        raise InputError(f"{path} ({role}) is zero everywhere: expected a scan. Is it the right file?")
    loaded = Nifti1Image(data, image.affine)
    loaded.file_map["image"].filename = str(path)  # for messages; set_filename refuses other formats' names
    return loaded


def load_labels(path: str | os.PathLike[str], like: Nifti1Image | None = None, role: str = "labels") -> Nifti1Image:
    """Read a label map as int32, checked to lie on the grid of `like`.

    Raises
    ------
    InputError
        As :func:`load_image`; also if values are not whole numbers, do not fit into int32, or the grid is another one.
    """
    path = Path(path)
    image = _read(path, role)
    data = _voxels(image, path, role)
    whole = np.rint(data)
    if not np.isfinite(data).all() or np.abs(data - whole).max(initial=0) > 1e-3:
        raise InputError(f"{path} ({role}) has values that are not whole numbers: expected a label map.")
    if whole.size and not LABELS[0] <= float(whole.min()) <= float(whole.max()) <= LABELS[1]:
        raise InputError(
            f"{path} ({role}) has labels from {whole.min():.0f} to {whole.max():.0f}: expected numbers "
            f"from {LABELS[0]:.0f} to {LABELS[1]:.0f}. Give the labels smaller numbers."
        )
    labels = Nifti1Image(whole.astype(np.int32), image.affine)
    if like is not None and not same_grid(labels, like):
        raise InputError(
            f"{path} ({role}) has shape {labels.shape} and another position or voxel size than its image of shape "
            f"{like.shape}: expected the same grid. Resample the labels onto their image (nearest neighbour)."
        )
    return labels


def load_mask(path: str | os.PathLike[str], like: Nifti1Image | None = None, role: str = "mask") -> Nifti1Image:
    """Read a mask as uint8 (0 or 1; anything above 0.5 counts as inside).

    Raises
    ------
    InputError
        As :func:`load_labels`, and if the mask is empty.
    """
    path = Path(path)
    image = _read(path, role)
    voxels = _voxels(image, path, role)
    if not np.isfinite(voxels).all():
        raise InputError(f"{path} ({role}) has NaN or infinite voxels: expected 0 and 1. Set them to 0.")
    mask = Nifti1Image((voxels > 0.5).astype(np.uint8), image.affine)
    if not np.asanyarray(mask.dataobj).any():
        raise InputError(f"{path} ({role}) is empty: expected at least one voxel above 0.5.")
    if like is not None and not same_grid(mask, like):
        raise InputError(
            f"{path} ({role}) has shape {mask.shape} and another position or voxel size than its image of shape "
            f"{like.shape}: expected the same grid."
        )
    return mask


def same_grid(a: Nifti1Image, b: Nifti1Image) -> bool:
    """Whether two images have the same shape and the same voxel positions.

    Positions can differ by a hundredth of a millimetre and by what a qform loses in rounding (:func:`same_placement`).
    """
    return a.shape == b.shape and same_placement(a.affine, b.affine, b.shape, GRID_TOLERANCE_MM)


def save_image(
    array: ArrayLike, affine: NDArray[np.float64], path: str | os.PathLike[str], dtype: DTypeLike = np.float32
) -> Path:
    """Write a NIfTI file under a temporary name, then rename it; qform and sform are alike and say scanner space.

    Parameters
    ----------
    array : array-like
        Voxels ``(X, Y, Z)``.
    affine : ndarray
        Voxel to world, RAS mm.
    dtype : dtype-like
        On disk.

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


def _read(path: Path, role: str) -> SpatialImage:
    if not path.is_file():
        raise InputError(f"{path} ({role}): no such file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} ({role}) is empty (0 bytes): expected an image. Fetch its content again.")
    try:
        image = nib.load(path)
    except (
        ImageFileError,
        HeaderDataError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    ) as error:
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
    return image


def _voxels(image: SpatialImage, path: Path, role: str) -> NDArray[Any]:
    try:
        data = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} ({role}) is truncated or damaged: {error}. Fetch the file again.") from None
    if data.dtype.names or np.iscomplexobj(data):
        raise InputError(f"{path} ({role}) holds {data.dtype} voxels: expected numbers.")
    return data.reshape(data.shape[:3])
