"""The scans of a BIDS dataset to be registered, with the masks and label images that there are for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from nio_pydra.bids.belonging import (
    LESION,
    belonging_file,
    fits,
    images_named,
    inherited,
    object_mask,
    of_several,
    segmentation,
)  # fmt: skip
from nio_pydra.bids.listing import (
    DatasetFile,
    Listing,
    entity_names,
    list_participant,
    list_sidecars,
    participant_labels,
    read_root,
)  # fmt: skip
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.files import read_json

__all__ = ["Scan", "find_scans", "read_filters", "scan_name"]

log = logging.getLogger("nio_pydra")

NAME_ENTITIES = ("subject", "session", "acquisition", "ceagent", "reconstruction", "run")
"""What tells one scan from another; output names repeat these."""
PREFIXES = dict(zip(NAME_ENTITIES, ("sub", "ses", "acq", "ce", "rec", "run"), strict=True))
PRESENT, ABSENT = "*", None
"""Values of a filter that ask for an entity, whatever it says, and for none."""


@dataclass(frozen=True)
class Scan:
    """One scan to be registered.

    Attributes
    ----------
    t1w : pathlib.Path
        The image. Absolute; may be a link, as in a DataLad dataset.
    relative : str
        The same, from the dataset's root.
    entities : dict of str to str
        Those of `NAME_ENTITIES` that its name has.
    skull_stripped : bool
        What its sidecar (or one it inherits) says under ``SkullStripped``.
    mask, lesion, labels : pathlib.Path or None
        Mask of the object and label image from derivatives, lesion mask from there or from the dataset itself.
    problem : str
        Why it cannot be registered, in a sentence; mostly empty.
    """

    t1w: Path
    relative: str
    entities: dict[str, str]
    skull_stripped: bool = False
    mask: Path | None = None
    lesion: Path | None = None
    labels: Path | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """The part of its file name that identifies it, as ``sub-01_ses-02_run-1``."""
        return scan_name(self.entities)


def scan_name(entities: Mapping[str, str]) -> str:
    """Return the part of a scan's file name that identifies it, from its `NAME_ENTITIES`."""
    return "_".join(f"{PREFIXES[key]}-{value}" for key, value in entities.items())


def find_scans(
    bids_dir: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    filters: Mapping[str, Any] | None = None,
    derivatives: Mapping[str, Path] | None = None,
    labels_desc: str | None = None,
    profile: Profile = BRAIN,
) -> list[Scan]:
    """Find the scans of a dataset that show what is to be registered, and say which masks are not used.

    Files of participants that were not asked for are not looked at. A file that cannot be used, as a sidecar that is
    not JSON, is the `problem` of the scans that it concerns.

    Parameters
    ----------
    bids_dir : pathlib.Path
    participants, sessions : sequence of str
        Labels, with or without ``sub-`` / ``ses-``; empty means all.
    filters : mapping, optional
        Entities that the scans must have, as `read_filters` gives them.
    derivatives : mapping of str to pathlib.Path, optional
        Derivative datasets by name; the first that has a file for a scan is used.
    labels_desc : str, optional
        Label images are ``desc-<labels_desc>_dseg``; None looks for none.
    profile : Profile
        What is registered.

    Returns
    -------
    list of Scan
        Sorted by name.

    Raises
    ------
    InputError
        If a dataset cannot be read, a label does not exist, or no scan is left.
    """
    others = list((derivatives or {}).values())
    for root in (bids_dir, *others):
        read_root(root)
    filters = dict(filters or {})
    if unknown := sorted(set(filters) - entity_names()):
        raise InputError(
            f"The filter for {profile.suffix} images cannot be used: BIDS has no entity {', '.join(unknown)}."
        )
    existing = participant_labels(bids_dir)
    asked = _known(participants, existing, "sub-", "participant", bids_dir) if participants else existing
    if sessions:
        filters["session"] = [label.removeprefix("ses-") for label in sessions]
    top = list_sidecars(bids_dir)
    scans: list[Scan] = []
    there: set[str] = set()
    masks = False
    for label in asked:
        raw = list_participant(bids_dir, label, profile)
        derived = [list_participant(root, label, profile) for root in others]
        there |= {str(file.entities["session"]) for file in raw.files if "session" in file.entities}
        masks = masks or any(
            file.path.match(f"*_desc-{profile.name}_mask.nii*") for found in derived for file in found.files
        )
        scans += _scans_of(raw, derived, top, filters, labels_desc, profile)
    _known(sessions, sorted(there), "ses-", "session", bids_dir)
    if not scans:
        given = {**({"subject": asked} if participants else {}), **filters}
        chosen = ", ".join(f"{key}={value}" for key, value in given.items())
        raise InputError(
            f"{bids_dir} has no {profile.suffix} image{f' with {chosen}' if chosen else ''}: expected files named "
            f"sub-<label>/{profile.datatype}/sub-<label>_{profile.suffix}.nii.gz."
        )
    if participants and (missing := sorted(set(asked) - {scan.entities["subject"] for scan in scans})):
        absent = ", ".join(missing)
        raise InputError(f"{bids_dir} has no {profile.suffix} image of participant {absent}: leave them out.")
    if labels_desc and not any(scan.labels or scan.problem for scan in scans):
        raise InputError(f"No scan has a label image desc-{labels_desc}_dseg in the derivatives: is the name right?")
    scans.sort(key=lambda scan: scan.name)
    without = [scan.name for scan in scans if not (scan.mask or scan.problem)]
    if masks and without:
        log.info("%d scans have no %s mask in the derivatives: %s", len(without), profile.name, _shortened(without))
    return scans


def _scans_of(
    raw: Listing,
    derived: Sequence[Listing],
    top: Sequence[DatasetFile],
    filters: Mapping[str, Any],
    labels: str | None,
    profile: Profile,
) -> list[Scan]:
    """Return the scans of one participant, each with what belongs to it."""
    images = [
        file
        for file in raw.files
        if _matches(file.entities.get("suffix"), filters.get("suffix", profile.suffix))
        and file.entities["extension"] in (".nii", ".nii.gz")
        and file.entities.get("part") not in ("phase", "imag", "real")
    ]
    chosen = [image for image in images if all(_matches(image.entities.get(k), v) for k, v in filters.items())]
    everyone = [image.entities for image in images]
    kinds = {
        "mask": [images_named(listing.files, object_mask(profile), profile) for listing in derived],
        "lesion": [images_named(listing.files, LESION, profile) for listing in (*derived, raw)],
        "labels": [images_named(listing.files, segmentation(labels), profile) for listing in derived] if labels else [],
    }
    for files in chain.from_iterable(kinds.values()):
        for file in of_several(files, everyone):
            log.warning("%s is not used: it could belong to several scans of its participant", file.path)
    unreadable = [problem for listing in (raw, *derived) for problem in listing.unreadable]
    scans: dict[str, Scan] = {}
    for image in chosen:
        scan = Scan(image.path, image.relative, _name_entities(image.entities))
        try:
            if twin := scans.get(scan.name):
                raise InputError(
                    f"{twin.t1w} and {scan.t1w} would get the same output names: choose one (--bids-filter-file)."
                )
            if image.misplaced:
                raise InputError(
                    f"{image.path}: name and folder must say the same participant and session, in letters and digits, "
                    "and a run must be a number."
                )
            for entities, problem in unreadable:
                if fits(entities, image.entities):
                    raise InputError(problem)
            own = {kind: belonging_file(datasets, image.entities, everyone) for kind, datasets in kinds.items()}
            stripped = inherited([*top, *raw.files], image, "SkullStripped")
            if stripped not in (True, False, None):
                raise InputError(f"{image.path}: SkullStripped is {stripped!r} in its sidecar, expected true or false.")
            scan = replace(scan, skull_stripped=stripped is True, **own)  # type: ignore[arg-type]
        except InputError as error:
            scan = replace(scan, problem=str(error))
        scans[scan.name] = scan
    for entities, problem in raw.unreadable:
        if "session" not in entities or _matches(entities["session"], filters.get("session", PRESENT)):
            # Nobody knows which scans are in there.
            scan = Scan(Path(), "", _name_entities(entities), problem=problem)
            scans.setdefault(scan.name, scan)
    return list(scans.values())


def _name_entities(entities: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(entities[key]) for key in NAME_ENTITIES if key in entities}


def _matches(value: Any, wanted: Any) -> bool:
    """Return whether an entity (None: absent) is what a filter asks for; numbers are compared as numbers."""
    if isinstance(wanted, list):
        return any(_matches(value, one) for one in wanted)
    if wanted is ABSENT or value is None:
        return value is wanted
    if isinstance(value, int) and str(wanted).isdigit():
        return value == int(wanted)
    return wanted == PRESENT or str(value) == str(wanted)


def _shortened(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_filters(path: Path, profile: Profile = BRAIN) -> dict[str, Any]:
    """Read the entry of a BIDS filter file, as fMRIPrep defines it, whose key is the suffix in small letters: ``t1w``.

    Returns
    -------
    dict
        Entities and values; None asks for the entity's absence, ``*`` for any value.

    Raises
    ------
    InputError
        If the file is not JSON of that form.
    """
    content = read_json(path)
    key = profile.suffix.lower()
    if not isinstance(content.get(key), dict):
        raise InputError(
            f'{path} has no filter for {profile.suffix} images: expected {{"{key}": {{"acquisition": "..."}}}}.'
        )
    special = {"Query.NONE": ABSENT, "Query.ANY": PRESENT, "Query.REQUIRED": PRESENT}
    return {
        entity: special.get(value, value) if isinstance(value, str) else value
        for entity, value in content[key].items()
        if value != "Query.OPTIONAL"
    }


def _known(labels: Sequence[str], existing: Sequence[str], prefix: str, kind: str, root: Path) -> list[str]:
    wanted = [label.removeprefix(prefix) for label in labels]
    unknown = [label for label in wanted if label not in existing]
    if unknown:
        raise InputError(f"{root} has no {kind} {', '.join(unknown)}: it has {_shortened(existing) or 'none'}.")
    return list(dict.fromkeys(wanted))
