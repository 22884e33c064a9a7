"""One pair from two scans to transforms, warped image, labels and record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from nio_pydra.engines.affine import align
from nio_pydra.engines.brain_mask import make_brain_mask
from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.registration import propagate_labels, register, score
from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_image, load_labels
from nio_pydra.system.places import refuse_same_file
from nio_pydra.system.scratch import scratch_folder

__all__ = ["register_pair"]

RESULTS = ("record.json", "forward_xfm.h5", "inverse_xfm.h5", "warped.nii.gz", "labels.nii.gz")
"""In the order in which they appear: the record tells that all of them are ours."""


def register_pair(
    fixed: Path,
    moving: Path,
    out_dir: Path,
    *,
    engine: str = "nio_m",
    preset: str | None = None,
    weights: Path | None = None,
    fixed_labels: Path | None = None,
    moving_labels: Path | None = None,
    fixed_mask: Path | None = None,
    moving_mask: Path | None = None,
    lesion_mask: Path | None = None,
    skull_stripped: bool = False,
    runtime: Runtime | None = None,
) -> dict[str, Any]:
    """Mask, align, register, propagate labels and score one pair.

    Parameters
    ----------
    fixed, moving : Path
        3-D scans.
    out_dir : Path
        Takes ``forward_xfm.h5``, ``inverse_xfm.h5``, ``warped.nii.gz``, ``record.json`` and, with `moving_labels`,
        ``labels.nii.gz`` (the moving labels on the fixed grid).
    engine, preset, weights
        See :func:`nio_pydra.engines.registration.register`.
    fixed_labels, moving_labels : Path, optional
        Label maps on the grids of their images; with both of them the record holds Dice.
    fixed_mask, moving_mask : Path, optional
        Brain masks; made by deepbet where missing.
    lesion_mask : Path, optional
        Region of the moving image without a counterpart.
    skull_stripped : bool
        Both images show nothing but the brain: missing masks are taken from the images.
    runtime : Runtime, optional
        Device, threads, seed.

    Returns
    -------
    dict
        The record.

    Raises
    ------
    InputError
        If an input cannot be used, or a file would be lost; nothing is written then.
    """
    runtime = runtime or Runtime()
    out_dir = Path(out_dir)
    given = (fixed, moving, fixed_labels, moving_labels, fixed_mask, moving_mask, lesion_mask, weights)
    _refuse_loss(out_dir, [Path(path) for path in given if path is not None])
    # Labels are looked at first: a wrong grid must not cost a registration.
    for labels, image, role in ((fixed_labels, fixed, "fixed"), (moving_labels, moving, "moving")):
        if labels is not None:
            load_labels(Path(labels), like=load_image(image, f"{role} image"), role=f"{role} labels")
    with scratch_folder(out_dir) as work:
        runtime = replace(runtime, scratch=runtime.scratch or work)
        masks = []
        for mask, image, role in ((fixed_mask, fixed, "fixed"), (moving_mask, moving, "moving")):
            made = work / f"{role}_mask.nii.gz"
            masks.append(
                Path(mask) if mask else make_brain_mask(image, made, skull_stripped=skull_stripped, runtime=runtime)
            )
        affine, results = work / "affine.h5", work / "results"
        aligned = align(
            fixed, moving, affine,
            fixed_mask=masks[0], moving_mask=masks[1], lesion_mask=lesion_mask, runtime=runtime,
        )  # fmt: skip
        files = register(
            fixed, moving, affine, results,
            engine=engine, preset=preset, weights=weights,
            fixed_mask=masks[0], moving_mask=masks[1], lesion_mask=lesion_mask,
            affine_record=aligned, runtime=runtime,
        )  # fmt: skip
        record = dict(json.loads(files.record.read_text()))
        if moving_labels is not None:
            moved = propagate_labels(moving_labels, fixed, files.forward_xfm, results / "labels.nii.gz")
            if fixed_labels is not None:
                record = score(files.record, fixed_labels, moved, files.record, moving_labels)
        for name in RESULTS:
            if (results / name).exists():
                (results / name).replace(out_dir / name)
            else:  # of an earlier registration into the same folder
                (out_dir / name).unlink(missing_ok=True)
    return record


def _refuse_loss(out_dir: Path, inputs: list[Path]) -> None:
    """Raise `InputError` where a result would replace an input, or a file that no earlier registration has made."""
    refuse_same_file([out_dir / name for name in RESULTS], inputs)
    try:
        earlier = "engine" in json.loads((out_dir / "record.json").read_text())
    except (OSError, ValueError, TypeError):
        earlier = False
    for name in RESULTS:
        if not earlier and (out_dir / name).exists():
            raise InputError(f"{out_dir / name} is not of an earlier registration: choose another output folder.")
