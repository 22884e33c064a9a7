"""Reading of landmarks: pairs of points that an observer has found in two images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.errors import InputError
from nio_pydra.spatial.transforms import apply_affine

__all__ = ["read_landmarks", "read_pair"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
FORMATS = "expected three numbers x, y, z in every line"


def read_landmarks(path: str | os.PathLike[str], image: Nifti1Image) -> NDArray[np.float64]:
    """Read the landmarks of one image.

    Parameters
    ----------
    path : path-like
        Text file with one landmark a line. Its first line and its ending say what the numbers are:

        ========================  =====================================================================
        first line                numbers
        ========================  =====================================================================
        ``point``                 LPS mm, as elastix and ITK have them; the second line is their count
        ``index``                 voxels from 0, as elastix has them; the second line is their count
        ``i,j,k`` (csv)           voxels from 0
        ``x,y,z`` (csv)           RAS mm
        numbers, in a ``.csv``    voxels from 0 (Learn2Reg)
        numbers, in another file  whole voxels from 1 (DIR-Lab)
        ========================  =====================================================================

    image : Nifti1Image
        Image of the landmarks, ``(X, Y, Z)``.

    Returns
    -------
    ndarray
        ``(N, 3)`` float64, RAS mm, in the order of the file.

    Raises
    ------
    InputError
        If the file is missing, empty or not text; if a line does not hold three finite numbers, or the count of an
        elastix file is wrong; if voxels from 1 are not whole; or if a landmark lies outside the image.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> image = Nifti1Image(np.zeros((9, 9, 9), np.float32), np.diag([2.0, 2.0, 3.0, 1.0]))
    >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
    ...     print("4 3 2", file=file, flush=True)
    ...     read_landmarks(file.name, image)
    array([[6., 4., 3.]])
    """
    path = Path(path)
    lines = _lines(path)
    head = lines[0][1].lower().replace(" ", "")
    if head in ("point", "index"):
        rows = _numbers(path, _counted(path, lines), " ")
        to_world = LPS_TO_RAS if head == "point" else image.affine
    elif path.suffix.lower() == ".csv":
        named = head in ("i,j,k", "x,y,z")
        rows = _numbers(path, lines[1:] if named else lines, ",")
        to_world = np.eye(4) if head == "x,y,z" else image.affine
    else:
        rows = _numbers(path, lines, " ")
        if (rows != np.rint(rows)).any():
            raise InputError(
                f"{path} has landmarks that are not whole numbers: a text file without a header must hold DIR-Lab's "
                "voxels, counted from 1. Put 'point' and the count (LPS mm) in its first two lines, or give a csv."
            )
        rows, to_world = rows - 1, image.affine
    if not len(rows):
        raise InputError(f"{path} holds no landmarks: {FORMATS}.")
    points = apply_affine(to_world, rows)
    _require_inside(path, points, image)
    return points


def read_pair(
    fixed_path: str | os.PathLike[str],
    fixed_image: Nifti1Image,
    moving_path: str | os.PathLike[str],
    moving_image: Nifti1Image,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read the landmarks of two images that correspond line by line.

    Parameters
    ----------
    fixed_path, moving_path : path-like
        Files as :func:`read_landmarks` takes them; their formats can differ.
    fixed_image, moving_image : Nifti1Image
        Their images.

    Returns
    -------
    tuple of ndarray
        Fixed and moving landmarks, each ``(N, 3)``, RAS mm.

    Raises
    ------
    InputError
        As :func:`read_landmarks`, and if the two files do not hold the same number of landmarks.
    """
    fixed, moving = read_landmarks(fixed_path, fixed_image), read_landmarks(moving_path, moving_image)
    if len(fixed) != len(moving):
        raise InputError(
            f"{fixed_path} holds {len(fixed)} landmarks and {moving_path} {len(moving)}: expected the same number, "
            "in the same order. Give the two files of one pair."
        )
    return fixed, moving


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers from 1."""
    if not path.is_file():
        raise InputError(f"{path} (landmarks): no such file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} (landmarks) cannot be read as text: {error}.") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path} (landmarks) is empty: {FORMATS}.")
    return lines


def _counted(path: Path, lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return the lines of an elastix file that hold points, as many as its second line says."""
    count = lines[1][1] if len(lines) > 1 else "nothing"
    if not count.isdecimal() or int(count) != len(lines) - 2:
        raise InputError(
            f"{path} has {count!r} in its second line and {max(len(lines) - 2, 0)} lines after it: expected the "
            f"number of landmarks after {lines[0][1]!r}. Is the file complete?"
        )
    return lines[2:]


def _numbers(path: Path, lines: list[tuple[int, str]], separator: str) -> NDArray[np.float64]:
    """Return the three numbers of every line, ``(N, 3)``."""
    rows = []
    for number, line in lines:
        words = line.split(",") if separator == "," else line.split()
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = []
        if len(row) != 3 or not np.isfinite(row).all():
            columns = f" ({len(words)} columns)" if len(words) != 3 else ""
            raise InputError(f"{path}, line {number}, holds {line[:60]!r}{columns}: {FORMATS}.")
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, 3)


def _require_inside(path: Path, points: NDArray[np.float64], image: Nifti1Image) -> None:
    """Refuse points that lie outside the voxels of an image."""
    voxels = apply_affine(np.linalg.inv(image.affine), points)
    outside = np.flatnonzero(((voxels < -0.5 - 1e-6) | (voxels > np.array(image.shape[:3]) - 0.5 + 1e-6)).any(axis=1))
    if len(outside):
        where = ", ".join(f"{value:.1f}" for value in voxels[outside[0]])
        raise InputError(
            f"{path} has {len(outside)} of {len(points)} landmarks outside {image.get_filename() or 'its image'}; "
            f"landmark {outside[0] + 1} would be voxel ({where}) of an image of shape {image.shape[:3]}. "
            "Is it the file of this image, in the format that its first line and its ending stand for?"
        )
