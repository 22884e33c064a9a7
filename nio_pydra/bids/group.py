"""A table of the records of all scans of a derivative dataset."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from nio_pydra.bids.qc import Verdict, judge
from nio_pydra.bids.records import Place, Result, latest_results, value_at
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.files import atomic_path, write_text

__all__ = ["COLUMNS", "write_group_tables"]

COLUMNS: dict[str, tuple[Place, str, str | None]] = {
    "participant_id": ((), "Participant", None),
    "session_id": ((), "Session", None),
    "scan": ((), "What else tells this scan from others of the participant: acq, ce, rec, run", None),
    "atlas": ((), "Atlas that the scan was aligned to", None),
    "status": ((), "done, or failed in the latest run that it was part of", None),
    "reason": ((), "Why it failed", None),
    "qc": ((), "pass, look (somebody must look at the page of the participant) or fail", None),
    "qc_reason": ((), "Why it is not pass", None),
    "engine": (("engine",), "Registration engine", None),
    "preset": (("preset",), "Preset of the engine's settings", None),
    "dice_mean": (("dice", "mean"), "Mean Dice overlap over labels, atlas against propagated labels", None),
    "dice_labels": (("dice", "labels"), "Number of labels in that mean", None),
    "hd95_mm_mean": (("hd95_mm", "mean"), "Mean 95 % Hausdorff distance of the same labels", "mm"),
    "std_jacobian": (("std_jacobian",), "Standard deviation of the Jacobian determinant in the atlas's {object}", None),
    "fold_percent": (
        ("fold_percent",),
        "Voxels of the atlas's {object} whose Jacobian determinant is not positive",
        "%",
    ),
    "fold_percent_raw": (("before_unfolding", "fold_percent"), "The same before folds were removed", "%"),
    "jacobian_p1": (("jacobian_p1",), "Jacobian determinant in the atlas's {object}: 1st percentile", None),
    "jacobian_p99": (("jacobian_p99",), "The same: 99th percentile", None),
    "mask_overlap": (("mask_overlap",), "Dice overlap of the atlas's mask and the registered mask", None),
    "mask_empty_percent": (
        ("mask_empty_percent",),
        "Voxels of the scan's mask that hold the darkest value of the scan",
        "%",
    ),
    "affine_scale_smallest": (("affine", "scales", 0), "Smallest scale of the affine, scan against atlas", None),
    "affine_scale_largest": (("affine", "scales", -1), "Largest scale of the affine", None),
    "affine_turn": (("affine", "turn_degrees"), "Angle of the affine's rotation", "degrees"),
    "inverse_error_median": (
        ("inverse_error_mm", "voxels", "median"),
        "Distance after forward, then inverse, from voxels of the atlas: median",
        "mm",
    ),
    "inverse_error_p99": (("inverse_error_mm", "voxels", "p99"), "The same: 99th percentile", "mm"),
    "inverse_error_between_median": (
        ("inverse_error_mm", "between_voxels", "median"),
        "Distance after forward, then inverse, from points between voxels of the atlas: median",
        "mm",
    ),
    "inverse_error_between_p99": (("inverse_error_mm", "between_voxels", "p99"), "The same: 99th percentile", "mm"),
    "inverse_error_backward_median": (
        ("inverse_error_mm", "backward", "median"),
        "Distance after inverse, then forward, from voxels of the scan: median",
        "mm",
    ),
    "inverse_error_backward_p99": (("inverse_error_mm", "backward", "p99"), "The same: 99th percentile", "mm"),
    "similarity_before": (("similarity", "before"), "Image similarity after the affine alignment", None),
    "similarity_after": (("similarity", "after"), "Image similarity after the registration", None),
    "seconds_affine": (("seconds", "affine"), "Wall time of the affine alignment", "s"),
    "seconds_registration": (("seconds", "registration"), "Wall time from images to both transforms in memory", "s"),
    "seconds_registration_processor": (("seconds", "registration_processor"), "Processor time of the same", "s"),
    "seconds_files": (("seconds", "files"), "Wall time of reading and writing files", "s"),
    "peak_memory_mb": (("peak_memory_mb",), "Largest memory used by the registration", "MiB"),
    "device": (("device",), "Where the registration ran", None),
    "threads": (("threads",), "Processor threads it was given", None),
    "weights": (("weights", "name"), "Network weights", None),
    "version": (("versions", "nio_pydra"), "Version of nio_pydra", None),
}  # fmt: skip
"""Column: (path inside record.json, description, unit). A column without a path is made in another way.
``{object}`` in a description stands for the object that is registered."""


def write_group_tables(out_dir: Path, profile: Profile = BRAIN) -> list[Path]:
    """Write tables of the records of all scans in a folder, both done and failed.

    Parameters
    ----------
    out_dir : Path
        Derivative dataset made by the participant level.
    profile : Profile
        What was registered.

    Returns
    -------
    list of Path
        For each ``desc``, the table ``group_desc-<desc>_registration.tsv`` and its json.

    Raises
    ------
    InputError
        If there is no record, or a record cannot be read.
    """
    results = latest_results(out_dir)
    if not results:
        raise InputError(f"{out_dir} has no registration records: run the participant level first.")
    verdicts = judge(results, profile)
    rows: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        rows.setdefault(result.entities["desc"], []).append(_row(result, verdicts[result.name]))
    written = []
    for desc, table in rows.items():
        target = out_dir / f"group_desc-{desc}_registration.tsv"
        with atomic_path(target) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(COLUMNS), delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
        columns = {
            column: {"Description": text.format(object=profile.name)} | ({"Units": unit} if unit else {})
            for column, (_, text, unit) in COLUMNS.items()
        }
        write_text(json.dumps(columns, indent=2) + "\n", target.with_suffix(".json"))
        written += [target, target.with_suffix(".json")]
    return written


def _row(result: Result, verdict: Verdict) -> dict[str, Any]:
    name = result.entities
    row = {column: _value(result.record, place) for column, (place, _, _) in COLUMNS.items() if place}
    row |= {
        "participant_id": result.participant,
        "session_id": f"ses-{name['ses']}" if "ses" in name else "n/a",
        "scan": "_".join(f"{key}-{name[key]}" for key in ("acq", "ce", "rec", "run") if key in name) or "n/a",
        "atlas": result.atlas,
        "status": "failed" if result.failed else "done",
        "reason": result.reason or "n/a",
        "qc": verdict.status,
        "qc_reason": "; ".join(verdict.reasons) or "n/a",
    }
    if result.files_of_earlier_run:
        # An earlier run may have left results, but not those that the latest run was asked for.
        row["reason"] += " (The files in its folder are those of an earlier run.)"
    return row


def _value(record: dict[str, Any], place: Place) -> Any:
    """Return a value of a record: ``n/a`` if missing, the count of a table, four digits of a float."""
    found = value_at(record, place)
    if isinstance(found, dict):
        return len(found)
    if isinstance(found, float):
        return f"{found:.4g}"
    return "n/a" if found is None else found
