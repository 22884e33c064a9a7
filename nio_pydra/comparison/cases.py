"""Cases of a comparison: one row for each method and scan, and one for each of their labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nio_pydra.bids.records import done_records, failures, name_entities, read_record, value_at
from nio_pydra.comparison.structures import Structures

__all__ = ["ALL", "CASES", "gather_cases", "records_of"]

ALL = "all"
"""Name of the group of all structures."""

#: Column: path inside record.json, and what it is.
CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "std_jacobian": (("std_jacobian",), "Standard deviation of the Jacobian determinant inside the fixed mask"),
    "fold_percent": (("fold_percent",), "Voxels whose Jacobian determinant is not positive, %"),
    "fold_percent_raw": (("before_unfolding", "fold_percent"), "The same before folds were removed, %"),
    "inverse_error_median_mm": (("inverse_error_mm", "voxels", "median"), "Distance there and back, median, mm"),
    "inverse_error_p99_mm": (("inverse_error_mm", "voxels", "p99"), "Distance there and back, 99th percentile, mm"),
    "similarity": (("similarity", "after"), "Mean squared local cross-correlation inside the fixed mask"),
    "seconds": (("seconds", "registration"), "Wall time from images in memory to both transforms in memory, s"),
    "processor_seconds": (("seconds", "registration_processor"), "Processor time of the same, s"),
    "affine_seconds": (("seconds", "affine"), "Wall time of the affine, s"),
    "peak_memory_mb": (("peak_memory_mb",), "Peak memory, MiB"),
    "threads": (("threads",), "Processor threads"),
    "device": (("device",), "Device"),
    "precision": (("precision",), "Precision of the network's convolutions"),
    "engine": (("engine",), "Engine"),
    "preset": (("preset",), "Preset"),
    "weights": (("weights", "name"), "Network weights"),
    "weights_sha256": (("weights", "sha256"), "Digest of the weights"),
    "training_data": (("weights", "training_data"), "What the weights were trained on"),
    "settings": (("settings",), "Settings, JSON"),
    "versions": (("versions",), "Versions, JSON"),
    "fixed_digest": (("inputs", "fixed"), "Digest of the atlas's image"),
    "moving_digest": (("inputs", "moving"), "Digest of the scan's image"),
    "fixed_labels_digest": (("label_inputs", "fixed"), "Digest of the atlas's labels"),
    "moving_labels_digest": (("label_inputs", "moving"), "Digest of the scan's labels"),
}


def gather_cases(
    folders: Mapping[str, Path], scans: Sequence[str], structures: Structures, space: Mapping[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read what each method has done with each scan, to one atlas.

    Parameters
    ----------
    folders : mapping of str to Path
        Derivative dataset by name of the method.
    scans : sequence of str
        Names of the scans of this comparison, as ``sub-01_ses-a``; others in the folders are left out.
    structures : Structures
        Names and groups of labels.
    space : mapping of str to str
        Entities of the atlas's space. The folders can hold results for other atlases as well, which are left out.

    Returns
    -------
    cases : DataFrame
        One row for each method and scan that was done or failed: ``method``, ``case``, ``participant``, ``status``,
        ``reason``, ``structures_<group>`` (number of labels), ``dice_<group>`` and ``hd95_mm_<group>`` (means over the
        labels of a group), and `CASES`.
    labels : DataFrame
        One row for each label of each case that was done: ``method``, ``case``, ``participant``, ``label``, ``name``,
        ``group``, ``dice``, ``hd95_mm``.

    Raises
    ------
    InputError
        If a record cannot be read.
    """
    cases: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    for method, folder in folders.items():
        failed, done = _by_scan(failures(folder), space), records_of(folder, space)
        for scan in scans:
            path = failed.get(scan) or done.get(scan)
            if path is None:
                continue
            row = {"method": method, "case": scan, "participant": scan.split("_")[0]}
            record = read_record(path)
            if scan in failed:
                cases.append(row | {"status": "failed", "reason": record.get("reason")})
                continue
            own = [row | label for label in _labels(record, structures)]
            labels += own
            cases.append(row | {"status": "done"} | _means(own) | {key: _value(record, key) for key in CASES})
    return pd.DataFrame(cases), pd.DataFrame(labels)


def records_of(folder: Path, space: Mapping[str, str]) -> dict[str, Path]:
    """Return the records of scans that are done to one atlas, by the name of the scan.

    Parameters
    ----------
    folder : Path
        Derivative dataset.
    space : mapping of str to str
        Entities of the atlas's space.
    """
    return _by_scan(done_records(folder), space)


def _by_scan(records: Sequence[Path], space: Mapping[str, str]) -> dict[str, Path]:
    """Return the records for one atlas by the scan that they belong to: their name up to the atlas."""
    found = {}
    for path in records:
        entities = name_entities(path)
        if {key: entities[key] for key in ("space", "cohort", "res") if key in entities} == space:
            found[path.name.split("_space-")[0]] = path
    return found


def _labels(record: Mapping[str, Any], structures: Structures) -> list[dict[str, Any]]:
    overlap, distance = (record.get(key) or {"labels": {}} for key in ("dice", "hd95_mm"))
    return [
        {
            "label": int(label),
            "name": structures.names.get(int(label), label),
            "group": structures.group(int(label)),
            "dice": value,
            "hd95_mm": distance["labels"].get(label, np.nan),
        }
        for label, value in overlap["labels"].items()
    ]


def _means(labels: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of both measures over the labels of each group and over all, and how many labels these are."""
    if not labels:
        return {}
    table = pd.DataFrame(labels)
    found: dict[str, float] = {f"structures_{ALL}": len(table)}
    found |= {f"structures_{group}": len(own) for group, own in table.groupby("group")}
    for measure in ("dice", "hd95_mm"):
        found[f"{measure}_{ALL}"] = float(table[measure].mean())
        found |= {f"{measure}_{group}": float(mean) for group, mean in table.groupby("group")[measure].mean().items()}
    return found


def _value(record: Mapping[str, Any], column: str) -> Any:
    found = value_at(record, CASES[column][0])
    return json.dumps(found) if isinstance(found, dict) else found
