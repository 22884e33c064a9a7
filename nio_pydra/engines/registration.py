"""Registration of files by any engine, label propagation and scoring.

Engines are called in :func:`register` only. It reads and checks the images, runs the engine, inverts the deformation if
the engine did not, writes both directions as ITK transforms and measures the result.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image

from nio_pydra import __version__
from nio_pydra.engines.contract import Deformation, Pair, Runtime, ScanFiles
from nio_pydra.engines.memory import forget_peak_memory, peak_memory_mb
from nio_pydra.engines.methods import Method, choose_method, usual_preset
from nio_pydra.engines.names import DEFAULT_ENGINE
from nio_pydra.engines.quality import quality
from nio_pydra.engines.stopwatch import Stopwatch
from nio_pydra.errors import ComputationError, InputError
from nio_pydra.metrics import dice, hausdorff_95, landmark_errors, volume_factor
from nio_pydra.optimize.resources import limit_threads
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.spatial.images import load_image, load_labels, load_mask, save_image
from nio_pydra.spatial.inversion import invert
from nio_pydra.spatial.itk import read_affine, read_h5, write_h5
from nio_pydra.spatial.landmarks import read_pair
from nio_pydra.spatial.transforms import Transform, resample
from nio_pydra.system.files import contents_digest, write_text
from nio_pydra.system.forks import fork_safe

__all__ = [
    "Registration", "load_pair", "map_volume_change", "measure_landmarks", "propagate_labels", "register", "score",
    "warp",
]  # fmt: skip

log = logging.getLogger("nio_pydra")

LEAST_KEPT = 0.5
"""Smallest share of the affine's similarity after a registration that has not failed."""
RECORDED = ("torch", "numpy", "nibabel", "antspyx")
"""Packages whose versions are recorded."""


@dataclass(frozen=True)
class Registration:
    """Files of a finished registration.

    Attributes
    ----------
    forward_xfm, inverse_xfm : Path
        ITK composites from fixed to moving points (to resample the moving image onto the fixed grid), and back.
    warped : Path
        Moving image on the fixed grid, float32.
    record : Path
        JSON file with the engine, times, memory, quality and versions.
    """

    forward_xfm: Path
    inverse_xfm: Path
    warped: Path
    record: Path


@fork_safe
def register(
    fixed: ScanFiles,
    moving: ScanFiles,
    affine: Path,
    out_dir: Path,
    method: Method | None = None,
    *,
    affine_record: Mapping[str, float] | None = None,
    profile: Profile = BRAIN,
    runtime: Runtime | None = None,
) -> Registration:
    """Register a moving image to a fixed one, starting from a given affine.

    Parameters
    ----------
    fixed, moving : ScanFiles
        3-D images. Masks lie on their grids. Without a mask the image is zero outside the object. The similarity
        ignores a lesion of the moving image.
    affine : Path
        ITK affine, or composite with one affine, from fixed to moving points.
    out_dir : Path
        Folder for ``forward_xfm.h5``, ``inverse_xfm.h5``, ``warped.nii.gz`` and ``record.json``.
    method : Method, optional
        Engine and settings. Default: the default engine, with the preset for such images.
    affine_record : mapping, optional
        What :func:`nio_pydra.engines.affine.align` returned, for the record: times, and the number of starts.
    profile : Profile
        Profile of the images.
    runtime : Runtime, optional
        Device, threads, seed.

    Raises
    ------
    InputError
        If an input cannot be used.
    ComputationError
        If the result of the engine is not finite, or fits much worse than the affine alone.

    Notes
    -----
    ``seconds`` in the record have the same meaning for every engine. ``registration`` is the time from images in memory
    to both transforms in memory, and ``registration_processor`` is its processor time. Both exclude the start of
    processes and the loading of weights, as far as an engine lets them: those of ``syn`` hold the writing of compressed
    fields, those of ``niftyreg`` the start of its programs and their files. ``affine`` and ``affine_processor`` are the
    same for the affine. ``files`` is reading and writing. ``measures`` is the resampling of the moving image and all
    measures of quality. ``preparation`` is the rest: the loading of weights and programs.
    """
    runtime, method = runtime or Runtime(), method or choose_method(preset=usual_preset(DEFAULT_ENGINE, profile))
    forget_peak_memory()
    limit_threads(runtime.thread_count)
    whole = Stopwatch()
    pair = load_pair(fixed, moving, Path(affine), profile)
    reading = whole.read().wall
    found = method.engine.run(pair, method.settings, runtime)
    inversion = Stopwatch()
    transforms = _transforms(pair, found)
    spent = found.spent + inversion.read()
    measuring = Stopwatch()
    warped = _warped(pair, transforms[0])
    measures = quality(pair, transforms)
    similarity = measures["similarity"]
    if similarity["after"] < LEAST_KEPT * similarity["before"]:
        raise ComputationError(
            f"{moving.image} fits {fixed.image} worse after the registration by {method.name} than after the affine "
            f"alone: similarity {similarity['before']:.2f} -> {similarity['after']:.2f}. "
            "Check that the weights are made for such images."
        )
    measured = measuring.read().wall
    writing = Stopwatch()
    names = ("forward_xfm.h5", "inverse_xfm.h5", "warped.nii.gz", "record.json")
    files = Registration(*(Path(out_dir) / name for name in names))
    write_h5(transforms[0], files.forward_xfm)
    write_h5(transforms[1], files.inverse_xfm)
    save_image(warped.dataobj, pair.fixed.affine, files.warped)
    reading_and_writing = reading + writing.read().wall
    aligned = affine_record or {}
    record = {
        **method.record(),
        "profile": profile.name,
        "inputs": {"fixed": contents_digest(fixed.image), "moving": contents_digest(moving.image)},
        "lesion_mask": moving.lesion_mask is not None,
        **measures,
        "affine": {**measures["affine"], "starts": aligned.get("starts")},
        "peak_memory_mb": max(found.details.pop("peak_memory_mb", 0.0), peak_memory_mb()),
        "device": "cpu",
        "threads": runtime.thread_count,
        "seed": runtime.seed,
        **found.details,
        "versions": {"nio_pydra": __version__, "python": platform.python_version()}
        | {name: version(name) for name in RECORDED},
        "seconds": {
            "affine": aligned.get("seconds"),
            "affine_processor": aligned.get("processor_seconds"),
            "registration": spent.wall,
            "registration_processor": spent.processor,
            "files": reading_and_writing,
            "measures": measured,
            "preparation": whole.read().wall - reading_and_writing - measured - spent.wall,
        },
    }
    _write_json(record, files.record)
    return files


@fork_safe
def measure_landmarks(fixed: ScanFiles, moving: ScanFiles, transforms: tuple[Path, Path], record: Path) -> None:
    """Add the target registration error of two images' landmarks to a record, as its ``tre``.

    Parameters
    ----------
    fixed, moving : ScanFiles
        Images with their landmarks.
    transforms : tuple of Path
        The affine and the forward transform, both from fixed to moving points.
    record : Path
        JSON file of :func:`register`. Its ``tre`` will hold ``before``, ``affine`` and ``after``, each as
        :meth:`nio_pydra.metrics.landmarks.TargetRegistrationError.as_record` gives it.

    Raises
    ------
    InputError
        If the landmarks cannot be used, or one of the images has none.
    """
    if fixed.landmarks is None or moving.landmarks is None:
        raise InputError(f"{fixed.image} and {moving.image}: expected landmarks of both images.")
    images = load_image(fixed.image), load_image(moving.image)
    points = read_pair(fixed.landmarks, images[0], moving.landmarks, images[1])
    steps = {
        "before": Transform(()),
        "affine": Transform((read_affine(transforms[0]),)),
        "after": read_h5(transforms[1]),
    }
    errors = {name: landmark_errors(*points, step, images[1]).as_record() for name, step in steps.items()}
    least = min(errors[name]["mean"] for name in ("before", "affine"))
    if errors["after"]["mean"] > least:
        log.warning(
            "The landmarks are %.2f mm apart after the registration and %.2f mm before it: are the two images, or "
            "%s and %s, swapped?", errors["after"]["mean"], least, fixed.landmarks, moving.landmarks,
        )  # fmt: skip
    _write_json({**json.loads(record.read_text()), "tre": errors}, record)


@fork_safe
def propagate_labels(labels: Path, reference: Path, transform: Path, out: Path) -> Path:
    """Resample a label map onto another image's grid, in one nearest-neighbour interpolation.

    Parameters
    ----------
    labels : Path
        Label map.
    reference : Path
        Image that gives the grid.
    transform : Path
        ITK composite that maps points of the reference to points of the labels.
    out : Path
        File to write, in the smallest of uint8, int16 and int32 that holds the labels.

    Raises
    ------
    InputError
        If one of the files cannot be used.
    """
    source = load_labels(Path(labels))
    target = load_image(Path(reference), "reference")
    moved = np.asanyarray(resample(source, target, read_h5(Path(transform)), "nearest").dataobj)
    smallest = next(t for t in (np.uint8, np.int16, np.int32) if np.array_equal(moved, moved.astype(t)))
    return save_image(moved, target.affine, out, smallest)


@fork_safe
def warp(image: Path, reference: Path, transform: Path, out: Path) -> Path:
    """Resample an image onto another image's grid, in one linear interpolation.

    Parameters
    ----------
    image : Path
        3-D image.
    reference : Path
        Image that gives the grid.
    transform : Path
        ITK composite that maps points of the reference to points of the image.
    out : Path
        File to write, float32.

    Raises
    ------
    InputError
        If one of the files cannot be used.
    """
    target = load_image(Path(reference), "reference")
    moved = resample(load_image(Path(image)), target, read_h5(Path(transform)))
    return save_image(moved.dataobj, target.affine, out)


@fork_safe
def map_volume_change(transform: Path, reference: Path, out: Path) -> Path:
    """Write the Jacobian determinant of a transform, affine included.

    The image that a forward transform resamples onto the fixed grid, times this map, keeps the amount of tissue of the
    moving image: this is the modulation of voxel-based morphometry.

    Parameters
    ----------
    transform : Path
        ITK composite that maps points of the reference. Its fields lie on the reference's grid.
    reference : Path
        Image that gives the grid.
    out : Path
        File to write, float32: volume in the space that the transform leads to, per volume in the reference.

    Raises
    ------
    InputError
        If one of the files cannot be used.
    """
    target = load_image(Path(reference), "reference")
    factor = volume_factor(read_h5(Path(transform)), target.shape[:3])
    return save_image(factor, target.affine, out)


@fork_safe
def score(
    record: Path, fixed_labels: Path, propagated_labels: Path, out: Path, moving_labels: Path | None = None
) -> dict[str, Any]:
    """Add the overlap of propagated labels and labels of the fixed image to a record.

    Parameters
    ----------
    record : Path
        JSON file of :func:`register`.
    fixed_labels, propagated_labels : Path
        Label maps on the fixed grid.
    out : Path
        File for the completed record; can be `record` itself.
    moving_labels : Path, optional
        Labels before their propagation. A label that the propagation lost then scores 0.

    Returns
    -------
    dict
        Completed record. Its ``dice`` and ``hd95_mm`` (95 % Hausdorff distance) hold ``mean`` and ``labels``. They are
        None if the maps share no label. A label that the propagation lost has no distance. ``label_inputs`` has the
        digests of the fixed and the moving labels.

    Raises
    ------
    InputError
        If the maps lie on different grids.
    """
    truth = load_labels(Path(fixed_labels))
    propagated = load_labels(Path(propagated_labels), like=truth)
    expected = None
    if moving_labels is not None:
        expected = {int(k) for k in np.unique(np.asanyarray(load_labels(Path(moving_labels)).dataobj))}
    maps = np.asanyarray(truth.dataobj), np.asanyarray(propagated.dataobj)
    overlaps = dice(*maps, expected)
    distances = hausdorff_95(*maps, overlaps, np.linalg.norm(truth.affine[:3, :3], axis=0).tolist())
    completed = json.loads(Path(record).read_text())
    completed["label_inputs"] = {
        "fixed": contents_digest(Path(fixed_labels)),
        "moving": None if moving_labels is None else contents_digest(Path(moving_labels)),
    }
    for name, per_label in (("dice", overlaps), ("hd95_mm", distances)):
        labels = {str(label): value for label, value in per_label.items()}
        completed[name] = {"mean": float(np.mean(list(labels.values()))), "labels": labels} if labels else None
    if not overlaps:
        files = (fixed_labels, moving_labels or propagated_labels)
        log.warning("%s and %s have no label in common: no overlap was measured.", *files)
    _write_json(completed, Path(out))
    return completed


def load_pair(fixed: ScanFiles, moving: ScanFiles, affine: Path, profile: Profile) -> Pair:
    """Read two images, their masks and their affine.

    Raises
    ------
    InputError
        If one of the files cannot be used.
    """
    images = load_image(fixed.image, "fixed image"), load_image(moving.image, "moving image")

    def mask(path: Path | None, like: Nifti1Image, role: str) -> Nifti1Image | None:
        return None if path is None else load_mask(path, like, role)

    return Pair(
        *images,
        read_affine(affine),
        mask(fixed.mask, images[0], "mask of the fixed image"),
        mask(moving.mask, images[1], "mask of the moving image"),
        mask(moving.lesion_mask, images[1], "lesion mask"),
        profile,
    )


def _warped(pair: Pair, transform: Transform) -> Nifti1Image:
    """Return the moving image on the fixed grid; beyond its border it has the value that the profile gives."""
    outside = np.float32(pair.profile.outside)
    if outside == 0:
        return resample(pair.moving, pair.fixed, transform)
    raised = Nifti1Image(np.asanyarray(pair.moving.dataobj) - outside, pair.moving.affine)
    warped = resample(raised, pair.fixed, transform)
    return Nifti1Image(np.asanyarray(warped.dataobj) + outside, warped.affine)


def _transforms(pair: Pair, found: Deformation) -> tuple[Transform, Transform]:
    """Return the forward and the inverse transform."""
    inverse_affine = np.linalg.inv(pair.affine)
    if found.forward is None:
        return Transform((pair.affine,)), Transform((inverse_affine,))
    inverse = found.inverse or invert(found.forward)
    return Transform((found.forward, pair.affine)), Transform((inverse_affine, inverse))


def _write_json(record: dict[str, Any], path: Path) -> None:
    write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", path)
