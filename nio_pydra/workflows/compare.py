"""Workflow: several methods on the same scans of a dataset, with the same masks and the same affine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image

from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan
from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_labels
from nio_pydra.system.places import same_place
from nio_pydra.workflows.dataset import DatasetSettings, Outcome, register_dataset

__all__ = ["cases_of", "folder_of", "register_by_methods", "require_own_folders"]

LONGEST_NAME = 255
"""Bytes of a folder's name that all file systems take."""


def register_by_methods(
    scans: Sequence[Scan],
    atlas: Atlas,
    all_settings: Mapping[str, DatasetSettings],
    *,
    out_dir: Path,
    work_dir: Path,
) -> Iterator[tuple[str, list[Outcome]]]:
    """Register scans to an atlas by one method after the other.

    All methods share the work folder. So the masks and the affine of a scan are computed once and found again by
    every other method, and a run that was stopped goes on where it was.

    Parameters
    ----------
    scans : sequence of Scan
        Scans to register.
    atlas : Atlas
        Atlas to align them to.
    all_settings : mapping of str to DatasetSettings
        Settings by the name of the method.
    out_dir : Path
        Folder for one derivative dataset for each method, named by :func:`folder_of`.
    work_dir : Path
        Folder for pydra's cache.

    Yields
    ------
    name : str
        Name of a method whose scans are finished.
    outcomes : list of Outcome
        What became of the scans, in their order.

    Raises
    ------
    InputError
        As :func:`nio_pydra.workflows.dataset.register_dataset` does.
    """
    for name, settings in all_settings.items():
        yield name, register_dataset(scans, atlas, settings, out_dir=folder_of(out_dir, name), work_dir=work_dir)


def folder_of(out_dir: Path, name: str) -> Path:
    """Return the derivative dataset of a method: its name in characters that all file systems take."""
    return out_dir / re.sub(r"[^A-Za-z0-9._=-]+", "-", name)


def require_own_folders(out_dir: Path, names: Sequence[str]) -> None:
    """Raise `InputError` if a method cannot have a folder, or would have that of another one."""
    owners: dict[str, str] = {}
    for name in names:
        folder = folder_of(out_dir, name)
        if len(folder.name) > LONGEST_NAME:
            raise InputError(
                f"The method {name} makes the name of a folder of {len(folder.name)} characters: expected at most "
                f"{LONGEST_NAME}. Give its weights a shorter path, for example by a link."
            )
        # Some file systems do not tell capital letters from small ones.
        owner = owners.setdefault(folder.name.casefold(), name)
        if owner != name:
            raise InputError(
                f"The methods {owner} and {name} would both be written to {folder}: leave one out, or give its "
                "weights another name."
            )


def cases_of(scans: Sequence[Scan], atlas: Atlas) -> list[Scan]:
    """Return the scans that a comparison can use: those with labels, without the atlas itself.

    Raises
    ------
    InputError
        If there is none, the atlas has no labels, or the first scan's labels have none in common with the atlas's.
    """
    if atlas.labels is None:
        raise InputError("The atlas has no labels: give them with --atlas-labels, as methods are compared by overlap.")
    others = [scan for scan in scans if not same_place(scan.image, atlas.image)]
    cases = [scan for scan in others if scan.labels is not None]
    if not cases:
        raise InputError(
            f"None of the {len(others)} scans has labels: give them with -d NAME=PATH and --labels-desc DESC, as "
            "methods are compared by overlap."
        )
    ours = _values(load_labels(atlas.labels, role="labels of the atlas"))
    for case in cases:
        assert case.labels is not None
        try:
            theirs = _values(load_labels(case.labels))
        except InputError:  # a broken file is the problem of its own scan
            continue
        if ours & theirs:
            break
        raise InputError(
            f"{case.labels} and {atlas.labels} have no label in common: expected labels of one scheme, so that their "
            "overlap can be measured."
        )
    return cases


def _values(labels: Nifti1Image) -> set[int]:
    return {int(value) for value in np.unique(np.asanyarray(labels.dataobj)) if value > 0}
