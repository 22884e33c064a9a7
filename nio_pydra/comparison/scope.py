"""Scope of a comparison: which scans it can use, and in which folders the results of its methods lie."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image

from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan
from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_labels
from nio_pydra.system.places import same_place

__all__ = ["cases_of", "folder_of", "require_own_folders"]

LONGEST_NAME = 255
"""Bytes of a folder's name that all file systems take."""


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
        raise InputError(
            "The atlas has no labels: give them with --atlas-labels, because methods are compared by overlap."
        )
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
