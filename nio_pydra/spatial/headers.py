"""Check that all programs read the same position of the voxels from an image's header.

A NIfTI header can hold two placements (qform and sform), separate voxel sizes, and a unit. nibabel and ITK choose
between them by different rules. A transform found with one choice is wrong for a program that makes the other, so a
header that leaves a choice is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.analyze import AnalyzeImage
from nibabel.nifti1 import Nifti1Header, Nifti1Pair
from nibabel.openers import Opener
from nibabel.quaternions import mat2quat
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from nio_pydra.errors import InputError

__all__ = ["require_millimetres", "require_one_placement", "require_rigid_axes", "same_placement"]

#: Largest harmless distance, in mm, between the positions that two readers give a voxel: a tenth of a usual voxel.
PLACEMENT_TOLERANCE_MM = 0.1
#: Largest cosine between two axes. ITK refuses an image with axes further from a right angle.
SHEAR_TOLERANCE = 2e-4
#: Rounding error of the square of a quaternion's scalar part, which NIfTI computes from three float32 numbers.
QUATERNION_LOSS = 5e-7
METRE, MICROMETRE = 1, 3  # NIfTI's codes of spatial units


def require_one_placement(image: SpatialImage, path: Path, role: str) -> None:
    """Refuse an image whose voxels nibabel and ITK place differently.

    Parameters
    ----------
    image : SpatialImage
        3-D image with an affine that can be inverted.
    path : Path
        File of the image, for messages.
    role : str
        Role of the file, for messages.

    Raises
    ------
    InputError
        If the header gives no orientation, or two that differ by more than a tenth of a millimetre; if it shears the
        voxels, contradicts its own voxel sizes, gives negative ones, or uses another unit than millimetres.
    """
    shape = image.shape[:3]
    if isinstance(image, AnalyzeImage) and not isinstance(image, Nifti1Pair):
        raise InputError(
            f"{path} ({role}) is an Analyze image, which does not say where left and right are: expected NIfTI. "
            "Convert it; if you know its axes, nio orient can then write them into the header."
        )
    if not isinstance(image, Nifti1Pair):
        require_rigid_axes(image.affine, np.linalg.norm(image.affine[:3, :3], axis=0), shape, path, role)
        return
    header = image.header
    require_millimetres(header, path, role)
    _require_positive_sizes(image, path, role)
    try:
        qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
        if qform is not None and not np.isfinite(qform).all():
            raise ValueError("not a number")
    except (ValueError, HeaderDataError) as error:
        raise InputError(
            f"{path} ({role}) has a qform that cannot be read ({error}). {_advice(path, 'sform')}"
        ) from None
    if qform is None and sform is None:
        raise InputError(
            f"{path} ({role}) does not say how its voxels lie in the body (qform_code and sform_code are 0): expected "
            f"an orientation. If you know it, write a copy: nio orient {path} OUT --axes LAS (axes that run to the "
            "left, front and top of the body)."
        )
    if sform is not None:
        instead = "" if qform is None else f" If its qform is right: {_advice(path, 'qform')}"
        require_rigid_axes(sform, np.asarray(header.get_zooms()[:3], float), shape, path, role, instead)
    if qform is not None and sform is not None and not same_placement(qform, sform, shape, PLACEMENT_TOLERANCE_MM):
        raise InputError(
            f"{path} ({role}) has a qform and an sform that place it {_corner_distance(qform, sform, shape):.1f} mm "
            f"apart: programs disagree on which one counts. {_advice(path, 'sform')} or --keep qform."
        )


def _require_positive_sizes(image: Nifti1Pair, path: Path, role: str) -> None:
    """Raise `InputError` if voxel sizes in the file are negative: nibabel ignores the sign, ITK turns the axis."""
    file = image.file_map.get("header") or image.file_map["image"]
    with Opener(str(file.filename), "rb") as stream:
        raw = image.header_class.from_fileobj(stream, check=False)
    if not (np.isfinite(raw["pixdim"][1:4]) & (raw["pixdim"][1:4] >= 0)).all():
        raise InputError(
            f"{path} ({role}) has voxel sizes (pixdim) of {_sizes(raw['pixdim'][1:4])} mm: programs disagree on which "
            f"way its axes run. {_advice(path, 'sform' if raw['sform_code'] else 'qform')}"
        )


def require_millimetres(header: Nifti1Header, path: Path, role: str) -> None:
    """Raise `InputError` if a header uses another unit than millimetres."""
    if int(header["xyzt_units"]) & 7 in (METRE, MICROMETRE):
        raise InputError(
            f"{path} ({role}) gives its voxel sizes in {header.get_xyzt_units()[0]}s: expected mm. "
            "Correct xyzt_units and the sizes in its header."
        )


def require_rigid_axes(
    affine: NDArray[np.float64],
    zooms: NDArray[np.float64],
    shape: tuple[int, ...],
    path: Path,
    role: str,
    instead: str = "",
) -> None:
    """Raise `InputError` if an affine shears, or its voxel sizes are not `zooms` (mm, one for each axis).

    `instead` is a sentence for the message: another remedy for a shear.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / sizes
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > SHEAR_TOLERANCE:
        raise InputError(
            f"{path} ({role}) has axes {np.degrees(np.arcsin(min(shear, 1))):.2f} degrees off a right angle: other "
            f"programs refuse it or read something else. Resample it onto a grid without shear.{instead}"
        )
    if not (np.abs(sizes - zooms) * np.array(shape)).max() <= PLACEMENT_TOLERANCE_MM:
        raise InputError(
            f"{path} ({role}) has voxels of {_sizes(sizes)} mm by its sform and of {_sizes(zooms)} mm by its pixdim: "
            f"programs disagree on which one counts. {_advice(path, 'sform')}"
        )


def _advice(path: Path, form: str) -> str:
    return f"Write a copy with one of them: nio orient {path} OUT --keep {form}"


def _sizes(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def same_placement(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...], tolerance_mm: float) -> bool:
    """Return whether two affines place the voxels of a grid alike.

    The rounding of a qform is tolerated as well: a small turn around the first voxel.

    Parameters
    ----------
    a, b : ndarray
        4x4, voxel to world, mm.
    shape : tuple of int
        Shape of the grid.
    tolerance_mm : float
        Largest distance between the two positions of a voxel.
    """
    if not np.linalg.norm(a[:3, 3] - b[:3, 3]) <= tolerance_mm:  # written so that NaN counts as a difference
        return False
    return _corner_distance(a, b, shape) <= tolerance_mm + _quaternion_tolerance(b, shape)


def _corner_distance(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance, in mm, between the positions that two affines give the corners of a grid."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1])).reshape(4, -1)
    return float(np.linalg.norm(((a - b) @ corners)[:3], axis=0).max())


def _quaternion_tolerance(affine: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Return the distance, in mm, by which the rounding of a qform can move the last corner of a grid.

    NIfTI stores three parts of a rotation's quaternion in float32 and computes the scalar part from them. Near a turn
    by 180 degrees, as between RAS and LPS axes, that part is close to zero and loses most of its digits. The error is
    up to 0.07 degrees, which at 200 mm is a quarter of a millimetre.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    rotation = affine[:3, :3] / sizes
    if np.linalg.det(rotation) < 0:
        rotation = rotation * [1, 1, -1]  # NIfTI stores the flip separately
    scalar = abs(mat2quat(rotation)[0])
    low, high = np.sqrt(max(scalar**2 - QUATERNION_LOSS, 0)), np.sqrt(scalar**2 + QUATERNION_LOSS)
    angle = 2 * max(scalar - low, high - scalar)
    return float(angle * np.linalg.norm(sizes * (np.array(shape) - 1)))
