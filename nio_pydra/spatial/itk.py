"""Reading and writing of ITK transform files: composite ``.h5``, and affine ``.mat`` (reading only).

Files hold LPS mm, and a composite lists its transforms in reverse order of application. In memory everything is RAS mm
in order of application.
"""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from nio_pydra.errors import ComputationError, InputError
from nio_pydra.spatial.finite import require_finite
from nio_pydra.spatial.lps import affine_from_itk, field_from_itk, itk_geometry, itk_vectors, swap_ras_lps
from nio_pydra.spatial.transforms import DisplacementField, Transform
from nio_pydra.system.files import atomic_path

__all__ = ["read_affine", "read_h5", "write_h5"]

AFFINE = "AffineTransform_double_3_3"
FIELD = "DisplacementFieldTransform_double_3_3"
STEPS = 1024
"""Least number of steps, per voxel, to which displacements are rounded. The digits beyond them do not compress."""


def write_h5(transform: Transform, path: str | Path) -> Path:
    """Write a transform as an ITK composite ``.h5``, readable by ITK, ANTs and nitransforms.

    Displacements are stored in single precision and rounded to a thousandth of a voxel (:data:`STEPS`), which halves
    the size of the file.

    Parameters
    ----------
    transform : Transform
        Affines and displacement fields, RAS mm.
    path : path-like
        File to write, whole or not at all.
    """
    content = io.BytesIO()  # HDF5 would end the process if it wrote to a full disk
    with h5py.File(content, "w") as file:
        # nitransforms and ITK require these two, but not their values.
        _strings(file, "ITKVersion", "5.4.0")
        _strings(file, "HDFVersion", h5py.version.hdf5_version)
        group = file.create_group("TransformGroup")
        _strings(group.create_group("0"), "TransformType", "CompositeTransform_double_3_3")
        for number, step in enumerate(reversed(transform.steps), start=1):
            entry = group.create_group(str(number))
            if isinstance(step, DisplacementField):
                _strings(entry, "TransformType", FIELD)
                spacing, origin, direction = itk_geometry(step.affine)
                geometry = [np.array(step.vectors.shape[1:]), origin, spacing, direction.ravel()]
                entry["TransformFixedParameters"] = np.concatenate(geometry, dtype=np.float64)
                entry.create_dataset(
                    "TransformParameters", data=_rounded(step), compression="gzip", compression_opts=1, shuffle=True
                )
            else:
                _strings(entry, "TransformType", AFFINE)
                matrix = swap_ras_lps(step)
                entry["TransformFixedParameters"] = np.zeros(3)
                entry["TransformParameters"] = np.concatenate([matrix[:3, :3].ravel(), matrix[:3, 3]])
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    return Path(path)


def read_h5(path: str | Path) -> Transform:
    """Read an ITK composite ``.h5`` made of affines and displacement fields.

    Raises
    ------
    InputError
        If the file is missing, is no ITK composite, or holds another type of transform or NaN or infinite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such transform file.")
    steps: list[NDArray[np.float64] | DisplacementField] = []
    try:
        with h5py.File(path, "r") as file:
            group = file["TransformGroup"]
            for number in sorted(group, key=int, reverse=True):
                entry = group[number]
                kind = entry["TransformType"][0].decode()
                if kind.startswith("CompositeTransform"):
                    continue
                fixed = np.asarray(_parameters(entry, "FixedParameters"), dtype=np.float64)
                values = np.asarray(_parameters(entry, "Parameters"))
                if kind.startswith("DisplacementFieldTransform"):
                    steps.append(_field(fixed, values))
                elif kind.startswith(("AffineTransform", "MatrixOffsetTransformBase")):
                    steps.append(_matrix(fixed, values.astype(np.float64)))
                else:
                    raise InputError(f"{path} holds a {kind}: expected affines and displacement fields only.")
        return Transform(tuple(steps))
    except InputError:
        raise
    except (OSError, KeyError, ValueError, IndexError) as error:
        _refuse_image(path, "a transform, as this package or ANTs writes it (.h5)")
        raise InputError(f"{path} is not an ITK composite transform (.h5): {error}") from None
    except ComputationError as error:
        raise InputError(f"{path} cannot be used: {error}") from None


def read_affine(path: str | Path) -> NDArray[np.floating]:
    """Read one affine (4x4, RAS mm) from an ITK ``.mat`` file of ANTs or a composite ``.h5``.

    Raises
    ------
    InputError
        If the file is missing, is no such transform, or holds more than one affine or numbers that are not finite.
    """
    path = Path(path)
    if path.suffix == ".h5":
        steps = read_h5(path).steps
        if len(steps) != 1 or isinstance(steps[0], DisplacementField):
            raise InputError(f"{path} holds {len(steps)} transforms: expected one affine.")
        return steps[0]
    if not path.is_file():
        raise InputError(f"{path}: no such transform file.")
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path)
        names = [name for name in content if "Transform" in name]
        matrix = _matrix(content["fixed"].ravel().astype(np.float64), content[names[0]].ravel().astype(np.float64))
        require_finite(matrix, "The affine")
    except (OSError, KeyError, IndexError, TypeError, ValueError, NotImplementedError, MatReadError) as error:
        _refuse_image(path, "an affine, as this package (.h5) or ANTs (.mat) writes it")
        raise InputError(f"{path} is not an ITK affine ({error}): expected a .mat file as ANTs writes it.") from None
    except ComputationError as error:
        raise InputError(f"{path} cannot be used: {error}") from None
    return matrix


def _refuse_image(path: Path, expected: str) -> None:
    """Raise `InputError` if a file that was given as a transform is an image."""
    try:
        nib.load(path)
    except (ImageFileError, OSError, ValueError):
        return
    raise InputError(f"{path} is an image: expected {expected}. Are two inputs exchanged?")


def _parameters(entry: h5py.Group, kind: str) -> h5py.Dataset:
    """Return a dataset of a transform, also under the misspelled name of ITK before 5.0."""
    misspelled = f"Tranform{kind}"
    return entry[misspelled if misspelled in entry else f"Transform{kind}"]


def _rounded(field: DisplacementField) -> NDArray[np.float32]:
    """Return the rounded displacements ``(N,)`` in LPS mm as ITK stores them: vector after vector, x fastest."""
    step = np.float32(2.0 ** np.floor(np.log2(itk_geometry(field.affine)[0].min() / STEPS)))
    return (np.round(itk_vectors(field) / step) * step).transpose(2, 1, 0, 3).ravel()


def _strings(group: h5py.Group, name: str, value: str) -> None:
    group.create_dataset(name, data=[value.encode()], dtype=h5py.string_dtype("ascii"))


def _matrix(centre: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    linear, translation = values[:9].reshape(3, 3), values[9:12]
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = translation + centre - linear @ centre
    return swap_ras_lps(matrix)


def _field(fixed: NDArray[np.float64], values: NDArray[np.generic]) -> DisplacementField:
    size, origin, spacing, direction = fixed[:3].astype(int), fixed[3:6], fixed[6:9], fixed[9:18].reshape(3, 3)
    vectors = values.reshape(*size[::-1], 3).transpose(2, 1, 0, 3).astype(np.float32)
    return field_from_itk(vectors, affine_from_itk(spacing, origin, direction))
