"""Which masks, label images and sidecars belong to a scan: by their entities, as BIDS inherits them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nio_pydra.bids.listing import DatasetFile
from nio_pydra.errors import InputError
from nio_pydra.profiles import Profile
from nio_pydra.system.files import read_json

__all__ = [
    "LESION", "Name", "belonging_file", "fits", "images_named", "inherited", "object_mask", "of_several",
    "segmentation",
]  # fmt: skip

Name = Mapping[str, str | None]
LESION: tuple[Name, ...] = (
    {"suffix": "mask", "desc": "lesion"},
    {"suffix": "mask", "label": "lesion"},
    {"suffix": "roi", "label": "lesion"},  # as fMRIPrep wants them named
)
DESCRIBING = frozenset(
    ("suffix", "extension", "datatype", "desc", "label", "space", "res", "den", "atlas", "segmentation")
)
"""Entities that say what a file shows; all others say of which scan."""


def object_mask(profile: Profile) -> tuple[Name, ...]:
    """Return the name of masks of what is registered."""
    return ({"suffix": "mask", "desc": profile.name, "label": None},)


def segmentation(desc: str) -> tuple[Name, ...]:
    """Return the name of label images with this ``desc``."""
    return ({"suffix": "dseg", "desc": desc},)


def images_named(files: Iterable[DatasetFile], names: Sequence[Name], profile: Profile) -> list[DatasetFile]:
    """Return the images that have one of these names and lie in the space of the scan they were made from."""
    own = profile.suffix
    return [
        file
        for file in files
        if file.entities.get("extension") in (".nii", ".nii.gz")
        and any(all(file.entities.get(key) == value for key, value in name.items()) for name in names)
        and file.entities.get("space", own) in (own, "orig")
        # "sub-01_T2w_desc-lesion_mask" was drawn on another image.
        and {part for part in file.path.name.split("_")[:-1] if "-" not in part} <= {own}
        and not file.misplaced
    ]


def fits(entities: Mapping[str, Any], scan: Mapping[str, Any]) -> bool:
    """Return whether all that a file says about its scan is true of this one; run numbers are numbers."""
    return _of_scan(entities).items() <= _of_scan(scan).items()


def belonging_file(
    datasets: Sequence[Sequence[DatasetFile]], scan: Mapping[str, Any], everyone: Sequence[Mapping[str, Any]]
) -> Path | None:
    """Return the file that belongs to a scan, from the first dataset that has one.

    The one whose entities are just those of the scan; or else the nearest that says less, as one without the session
    of a participant who has a single one, if there is no other scan that it could belong to.

    Parameters
    ----------
    datasets : sequence of sequence of DatasetFile
        Files of one kind, as `images_named` gives them.
    scan : mapping
        Entities of the scan.
    everyone : sequence of mapping
        Entities of all scans of the participant, this one included.

    Raises
    ------
    InputError
        If several files of one dataset belong to it equally.
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
            raise InputError(f"There are {len(found)} files for one scan, where one was expected: {paths}.")
        if found:
            return found[0].path
    return None


def of_several(files: Sequence[DatasetFile], scans: Sequence[Mapping[str, Any]]) -> list[DatasetFile]:
    """Return the files that could belong to several scans, so that they are used for none."""
    return [
        file
        for file in files
        if sum(fits(file.entities, scan) for scan in scans) > 1
        and not any(_of_scan(file.entities) == _of_scan(scan) for scan in scans)
    ]


def inherited(sidecars: Iterable[DatasetFile], scan: DatasetFile, key: str) -> Any:
    """Return what the sidecars of a scan say under a key: its own, or those in folders above it; the nearest wins.

    Raises
    ------
    InputError
        If one of them cannot be read.
    """
    own = scan.entities | {"extension": ".json"}
    above = [
        sidecar
        for sidecar in sidecars
        if sidecar.entities.items() <= own.items() and scan.path.is_relative_to(sidecar.path.parent)
    ]
    value = None
    for sidecar in sorted(above, key=lambda file: (len(file.path.parts), len(file.entities))):
        value = read_json(sidecar.path).get(key, value)
    return value


def _of_scan(entities: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entities.items() if key not in DESCRIBING}
