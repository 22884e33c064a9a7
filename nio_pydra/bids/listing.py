"""The files of one participant of a BIDS dataset, with their entities."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.files import read_json
from nio_pydra.system.places import same_place

__all__ = [
    "DatasetFile", "Listing", "entity_names", "file_entities", "indexed_files", "list_participant", "list_sidecars",
    "participant_labels", "require_dataset",
]  # fmt: skip

SKIPPED = {
    "func", "dwi", "fmap", "perf", "eeg", "meg", "ieeg", "beh", "pet", "micr", "motion", "nirs", "mrs",
    "figures", "log",
}  # fmt: skip
"""Folders of a participant without images to register, but often with thousands of files."""


@dataclass(frozen=True)
class DatasetFile:
    """A file of a dataset.

    Attributes
    ----------
    path : Path
        Absolute path. Links are not resolved.
    relative : str
        Path from the dataset's root.
    entities : dict
        Entities of the path inside the dataset, under pybids's names. ``run`` is a number that keeps its zeros.
    misplaced : bool
        Whether name and folder disagree about the participant or the session, or the run is not a number.
    """

    path: Path
    relative: str
    entities: dict[str, Any]
    misplaced: bool = False


@dataclass(frozen=True)
class Listing:
    """Files of one participant in a dataset.

    Attributes
    ----------
    files : list of DatasetFile
        Images and sidecars.
    unreadable : list of (dict, str)
        Entities of each folder that could not be listed, and a sentence that says why.
    """

    files: list[DatasetFile]
    unreadable: list[tuple[dict[str, Any], str]]


def require_dataset(root: Path) -> None:
    """Raise `InputError` if a folder is not a BIDS dataset."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: expected the root of a BIDS dataset.")
    path = root / "dataset_description.json"
    if not path.exists():
        raise InputError(
            f"{root} has no dataset_description.json: expected the root of a BIDS dataset, is it another folder?"
        )
    read_json(path)


def participant_labels(root: Path) -> list[str]:
    """Return the labels of all participants that have a folder, sorted.

    Raises
    ------
    InputError
        If the dataset cannot be listed.
    """
    try:
        folders = [entry.name for entry in os.scandir(root) if entry.name.startswith("sub-") and entry.is_dir()]
    except OSError as error:
        raise InputError(f"{root} cannot be listed ({error.strerror}): change its permissions.") from None
    return sorted(name.removeprefix("sub-") for name in folders if name != "sub-")


def indexed_files(root: Path, database: Path) -> dict[str, list[Path]]:
    """Return the images and sidecars of a PyBIDS database by participant label. It is made where it is absent.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    database : Path
        Folder of the database, as fMRIPrep's ``--bids-database-dir``.

    Raises
    ------
    InputError
        If the database cannot be read or made, or is of another dataset.
    """
    from bids.layout import BIDSLayout, BIDSLayoutIndexer
    from sqlalchemy.exc import SQLAlchemyError

    # With metadata, which other programs that use the database need.
    indexer = BIDSLayoutIndexer(validate=False, ignore=["code", "stimuli", "sourcedata", "models", re.compile(r"^\.")])
    try:
        layout = BIDSLayout(root.absolute(), validate=False, database_path=database.absolute(), indexer=indexer)
        paths = [Path(path) for path in layout.get(extension=[".nii", ".nii.gz", ".json"], return_type="filename")]
    except (SQLAlchemyError, OSError, ValueError) as error:
        reason = str(getattr(error, "orig", error)).splitlines()[0]
        raise InputError(
            f"The PyBIDS database {database} cannot be used ({reason}): delete it, or leave out --bids-database-dir."
        ) from None
    if not same_place(Path(layout.root), root):
        raise InputError(
            f"The PyBIDS database {database} is of the dataset {layout.root}, not of {root}: give another "
            "--bids-database-dir."
        )
    files: dict[str, list[Path]] = {}
    for path in sorted(paths):
        folder = path.relative_to(layout.root).parts[0]
        files.setdefault(folder.removeprefix("sub-"), []).append(root.absolute() / path.relative_to(layout.root))
    return files


def list_participant(
    root: Path, label: str, profile: Profile = BRAIN, indexed: Mapping[str, Sequence[Path]] | None = None
) -> Listing:
    """List the files of one participant, except in folders that hold no images of the profile.

    Parameters
    ----------
    root : Path
        Root of the dataset.
    label : str
        Label of the participant.
    profile : Profile
        What is registered.
    indexed : mapping, optional
        What `indexed_files` returned. Default: the folders are listed.
    """
    if indexed is not None:
        paths = indexed.get(label, ())
        return Listing([_dataset_file(path, str(path.relative_to(root.absolute())), label) for path in paths], [])
    # A pybids layout reads every sidecar, stops at the first broken one, skips folders that it may not read, and takes
    # entities also from the folders above the dataset.
    listing = Listing([], [])
    skipped = SKIPPED - {profile.datatype}

    def note(error: OSError) -> None:
        folder = Path(str(error.filename))
        reason = f"{folder} cannot be listed ({error.strerror}): change its permissions."
        listing.unreadable.append((file_entities(f"{folder.relative_to(root.absolute())}/"), reason))

    top = root.absolute() / f"sub-{label}"
    if not top.is_dir():
        return listing
    for folder, folders, names in os.walk(top, followlinks=True, onerror=note):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):  # as macOS leaves beside files, under names that end alike
                continue
            if name.endswith(".json") or (name.startswith("sub-") and name.endswith((".nii", ".nii.gz"))):
                path = Path(folder, name)
                listing.files.append(_dataset_file(path, str(path.relative_to(root.absolute())), label))
    return listing


def list_sidecars(root: Path) -> list[DatasetFile]:
    """List the JSON files at the root, which hold for all participants."""
    return [_dataset_file(path, path.name, None) for path in sorted(root.absolute().glob("[!.]*.json"))]


def _dataset_file(path: Path, relative: str, label: str | None) -> DatasetFile:
    by_name, entities = file_entities(path.name), file_entities(relative)
    misplaced = any(entities[key] != value for key, value in by_name.items()) or entities.get("subject") != label
    misplaced |= "_run-" in path.name and "run" not in by_name  # as "run-a", which pybids ignores
    return DatasetFile(path, relative, entities if label is None else entities | {"subject": label}, misplaced)


def file_entities(relative: str | Path) -> dict[str, Any]:
    """Return the entities of a path inside a dataset, under pybids's names."""
    from bids.layout import parse_file_entities

    # pybids looks for entities in the whole path, so it must start at the dataset's root.
    return dict(parse_file_entities(f"/{relative}", entities=list(_entities().values())))


def entity_names() -> set[str]:
    """Return the entities that pybids knows."""
    return set(_entities())


@cache
def _entities() -> Mapping[str, Any]:
    from bids.layout.models import Config

    return {**Config.load("bids").entities, **Config.load("derivatives").entities}
