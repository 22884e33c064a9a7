"""Masks, label images and sidecars of a scan, found by their BIDS entities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nio_pydra.bids.listing import DatasetFile
from nio_pydra.errors import InputError
from nio_pydra.profiles import Profile
from nio_pydra.system.files import read_json

__all__ = ["DESCRIBING", "LESION", "belonging_file", "fits", "images_named", "inherited", "of_several"]

Name = Mapping[str, str | None]
LESION: tuple[Name, ...] = (
    {"suffix": "mask", "desc": "lesion"},
    {"suffix": "mask", "label": "lesion"},
    {"suffix": "roi", "label": "lesion"},  # as fMRIPrep wants them named
)
DESCRIBING = frozenset(
    ("suffix", "extension", "datatype", "desc", "label", "space", "res", "den", "atlas", "segmentation")
)
"""Entities that say what a file shows. All others say which scan it belongs to."""


def images_named(files: Iterable[DatasetFile], names: Sequence[Name], profile: Profile) -> list[DatasetFile]:
    """Return the images that have one of these names, in the space of the scan from which they were made."""
    own = profile.suffix
    return [
        file
        for file in files
        if file.entities.get("extension") in (".nii", ".nii.gz")
        and any(all(file.entities.get(key) == value for key, value in name.items()) for name in names)
        and file.entities.get("space", own) in (own, "orig")
        # "sub-01_T2w_desc-lesion_mask" belongs to another image.
        and {part for part in file.path.name.split("_")[:-1] if "-" not in part} <= {own}
        and not file.misplaced
    ]


def fits(entities: Mapping[str, Any], scan: Mapping[str, Any]) -> bool:
    """Return whether a scan has all entities of a file that say which scan it belongs to. Runs are numbers."""
    return _of_scan(entities).items() <= _of_scan(scan).items()


def belonging_file(
    datasets: Sequence[Sequence[DatasetFile]], scan: Mapping[str, Any], everyone: Sequence[Mapping[str, Any]]
) -> Path | None:
    """Return the file that belongs to a scan, from the first dataset that has one.

    A file with exactly the entities of the scan comes first. Otherwise a file with fewer entities is taken, if it
    cannot belong to another scan: a mask without a session, for example, of a participant with a single session. Of
    several such files, the one with the most entities is taken.

    Parameters
    ----------
    datasets : sequence of sequence of DatasetFile
        Files of one kind from each dataset, as `images_named` returns them.
    scan : mapping
        Entities of the scan.
    everyone : sequence of mapping
        Entities of all scans of the participant, this one included.

    Raises
    ------
    InputError
        If several files of one dataset belong to the scan equally.
    """
    for files in datasets:
        exact = [file for file in files if _of_scan(file.entities) == _of_scan(scan)]
        wider = [
            file
            for file in files
            if fits(file.entities, scan) and sum(fits(file.entities, other) for other in everyone) == 1
        ]
        nearest = max((len(_of_scan(file.entities)) for file in wider), default=0)
        found = exact or [file for file in wider if len(_of_scan(file.entities)) == nearest]
        if len(found) > 1:
            paths = ", ".join(str(file.path) for file in found)
            raise InputError(f"There are {len(found)} files for one scan, where one was expected: keep one of {paths}.")
        if found:
            return found[0].path
    return None


def of_several(files: Sequence[DatasetFile], scans: Sequence[Mapping[str, Any]]) -> list[DatasetFile]:
    """Return the files that could belong to several scans. They are used for none."""
    return [
        file
        for file in files
        if sum(fits(file.entities, scan) for scan in scans) > 1
        and not any(_of_scan(file.entities) == _of_scan(scan) for scan in scans)
    ]


def inherited(sidecars: Iterable[DatasetFile], scan: DatasetFile, key: str) -> Any:
    """Return the value of a key in the sidecars of a scan, or in those of folders above it. The nearest one counts.

    Raises
    ------
    InputError
        If a sidecar cannot be read.
    """
    entities = scan.entities | {"extension": ".json"}
    applicable = [
        sidecar
        for sidecar in sidecars
        if sidecar.entities.items() <= entities.items() and scan.path.is_relative_to(sidecar.path.parent)
    ]
    value = None
    for sidecar in sorted(applicable, key=lambda file: (len(file.path.parts), len(file.entities))):
        value = read_json(sidecar.path).get(key, value)
    return value


def _of_scan(entities: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entities.items() if key not in DESCRIBING}
