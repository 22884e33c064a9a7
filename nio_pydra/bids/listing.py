"""Files of single participants of a BIDS dataset, with the entities of their names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.files import read_json

__all__ = [
    "DatasetFile", "Listing", "entity_names", "file_entities", "list_participant", "list_sidecars",
    "participant_labels", "read_root",
]  # fmt: skip

SKIPPED = {
    "func", "dwi", "fmap", "perf", "eeg", "meg", "ieeg", "beh", "pet", "micr", "motion", "nirs", "mrs",
    "figures", "log",
}  # fmt: skip
"""Folders of a participant that hold no images of the kind that is registered, but often thousands of files."""


@dataclass(frozen=True)
class DatasetFile:
    """A file of a dataset.

    Attributes
    ----------
    path : pathlib.Path
        Absolute; links are kept as they are.
    relative : str
        From the dataset's root.
    entities : dict
        What its path inside the dataset says, by pybids's names; ``run`` is a number that keeps its zeros.
    misplaced : bool
        Whether its name says another participant or session than its folder, or a run that is no number.
    """

    path: Path
    relative: str
    entities: dict[str, Any]
    misplaced: bool = False


@dataclass(frozen=True)
class Listing:
    """What a dataset holds of one participant.

    Attributes
    ----------
    files : list of DatasetFile
    unreadable : list of (dict, str)
        Folders that could not be listed: the entities of their path, and a sentence.
    """

    files: list[DatasetFile]
    unreadable: list[tuple[dict[str, Any], str]]


def read_root(root: Path) -> dict[str, Any]:
    """Return the description of a dataset.

    Raises
    ------
    InputError
        If the folder is no BIDS dataset.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: expected the root of a BIDS dataset.")
    path = root / "dataset_description.json"
    if not path.exists():
        raise InputError(
            f"{root} has no dataset_description.json: expected the root of a BIDS dataset, is it another folder?"
        )
    return read_json(path)


def participant_labels(root: Path) -> list[str]:
    """Return the labels of the participants that have a folder, in order.

    Raises
    ------
    InputError
        If the dataset cannot be listed.
    """
    try:
        folders = [entry.name for entry in os.scandir(root) if entry.name.startswith("sub-") and entry.is_dir()]
    except OSError as error:
        raise InputError(f"{root} cannot be listed ({error.strerror}).") from None
    return sorted(name.removeprefix("sub-") for name in folders if name != "sub-")


def list_participant(root: Path, label: str, profile: Profile = BRAIN) -> Listing:
    """List the files of one participant among which images of a profile may be, and touch nothing else."""
    # Not a pybids layout: that reads every sidecar, stops at the first that is broken, passes over folders that it
    # may not read, and takes entities from the folders above the dataset as well.
    found = Listing([], [])
    skipped = SKIPPED - {profile.datatype}

    def note(error: OSError) -> None:
        place = Path(str(error.filename))
        reason = f"{place} cannot be listed ({error.strerror})."
        found.unreadable.append((file_entities(f"{place.relative_to(root.absolute())}/"), reason))

    top = root.absolute() / f"sub-{label}"
    if not top.is_dir():
        return found
    for folder, folders, names in os.walk(top, followlinks=True, onerror=note):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        for name in sorted(names):
            if name.endswith(".json") or (name.startswith("sub-") and name.endswith((".nii", ".nii.gz"))):
                path = Path(folder, name)
                found.files.append(_dataset_file(path, str(path.relative_to(root.absolute())), label))
    return found


def list_sidecars(root: Path) -> list[DatasetFile]:
    """List the JSON files at the root, which hold for all participants."""
    return [_dataset_file(path, path.name, None) for path in sorted(root.absolute().glob("*.json"))]


def _dataset_file(path: Path, relative: str, label: str | None) -> DatasetFile:
    by_name, entities = file_entities(path.name), file_entities(relative)
    misplaced = any(entities[key] != value for key, value in by_name.items()) or entities.get("subject") != label
    misplaced |= "_run-" in path.name and "run" not in by_name  # as "run-a", which pybids passes over
    return DatasetFile(path, relative, entities if label is None else entities | {"subject": label}, misplaced)


def file_entities(relative: str | Path) -> dict[str, Any]:
    """Return what a path inside a dataset says, by pybids's names."""
    from bids.layout import parse_file_entities

    # pybids looks for entities in the whole path that it is given; it wants one that starts at the dataset's root.
    return dict(parse_file_entities(f"/{relative}", entities=list(_entities().values())))


def entity_names() -> set[str]:
    """Return the entities that pybids knows."""
    return set(_entities())


@cache
def _entities() -> Mapping[str, Any]:
    from bids.layout.models import Config

    return {**Config.load("bids").entities, **Config.load("derivatives").entities}
