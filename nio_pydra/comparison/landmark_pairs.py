"""Registration of pairs with landmarks by several methods: what is done is kept, and one failure stops no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.engines.chain import register_pair
from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.engines.methods import Method
from nio_pydra.metrics import landmark_errors
from nio_pydra.profiles import Profile
from nio_pydra.spatial.images import load_image
from nio_pydra.spatial.itk import read_h5
from nio_pydra.spatial.transforms import Transform
from nio_pydra.system.files import contents_digest, read_json, write_text

__all__ = ["LandmarkPair", "initial_record", "is_done", "register_landmarks"]


@dataclass(frozen=True)
class LandmarkPair:
    """Two images and their landmarks.

    Attributes
    ----------
    fixed, moving : ScanFiles
    points : tuple of ndarray
        Fixed and moving landmarks, each ``(N, 3)``, RAS mm.
    profile : Profile
    """

    fixed: ScanFiles
    moving: ScanFiles
    points: tuple[NDArray[np.float64], NDArray[np.float64]]
    profile: Profile


def initial_record(pair: LandmarkPair) -> dict[str, Any]:
    """Return a record with the distances of the landmarks before any registration."""
    return {"landmarks": landmark_errors(*pair.points, Transform(()), _image(pair.moving)).as_record()}


def register_landmarks(
    pair: LandmarkPair, out_dir: Path, method: Method, runtime: Runtime, **chain: Any
) -> dict[str, Any]:
    """Register a pair, unless the same was done already, and measure its landmarks.

    Parameters
    ----------
    pair : LandmarkPair
    out_dir : Path
        Folder for what :func:`nio_pydra.engines.chain.register_pair` writes.
    method : Method
    runtime : Runtime
    **chain
        Other options of `register_pair`.

    Returns
    -------
    dict
        Record of the registration, with ``landmarks`` (:meth:`nio_pydra.metrics.TargetRegistrationError.as_record`).

    Raises
    ------
    InputError, ProgramError, ComputationError
        As `register_pair`.
    """
    path = out_dir / "record.json"
    record = read_json(path) if path.is_file() else {}
    if not is_done(record, pair, method, runtime, affine=chain.get("affine", True)):
        register_pair(pair.fixed, pair.moving, out_dir, method, profile=pair.profile, runtime=runtime, **chain)
        record = read_json(path) | _beyond_the_record(pair, method)
    forward = read_h5(out_dir / "forward_xfm.h5")
    measured = landmark_errors(*pair.points, forward, _image(pair.moving)).as_record()
    if record.get("landmarks") != measured:
        record["landmarks"] = measured
        write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", path)
    return record


def _beyond_the_record(pair: LandmarkPair, method: Method) -> dict[str, Any]:
    """Return what a result depends on, besides what every record says."""
    masks = {"fixed": contents_digest(pair.fixed.mask), "moving": contents_digest(pair.moving.mask)}
    return {"masks": masks, "fingerprint": method.fingerprint()}


def is_done(record: Mapping[str, Any], pair: LandmarkPair, method: Method, runtime: Runtime, *, affine: bool) -> bool:
    """Return whether a record is of these images and masks, and of this method with these settings and programs.

    The version of this package is not looked at; the record says it.
    """
    images = {"fixed": contents_digest(pair.fixed.image), "moving": contents_digest(pair.moving.image)}
    expected = {"inputs": images, "profile": pair.profile.name, "seed": runtime.seed}
    if any(record.get(name) != value for name, value in expected.items()) or not method.made(record):
        return False
    if (record["seconds"]["affine"] is not None) != affine:
        return False
    # Older records do not say it.
    return all(record.get(name, value) == value for name, value in _beyond_the_record(pair, method).items())


def _image(scan: ScanFiles) -> Nifti1Image:
    return load_image(scan.image)
