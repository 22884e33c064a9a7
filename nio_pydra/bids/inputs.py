"""The scans of a BIDS dataset, with their masks and label images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from nio_pydra.bids.belonging import DESCRIBING, LESION, belonging_file, fits, images_named, inherited, of_several
from nio_pydra.bids.listing import (
    DatasetFile,
    Listing,
    entity_names,
    indexed_files,
    list_participant,
    list_sidecars,
    participant_labels,
    require_dataset,
)  # fmt: skip
from nio_pydra.bids.products import OWN_MASK
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.files import read_json

__all__ = ["Scan", "find_scans", "read_filters", "scan_name"]

log = logging.getLogger("nio_pydra")

NAME_ENTITIES = ("subject", "session", "acquisition", "ceagent", "reconstruction", "run")
"""Entities that identify a scan. Names of outputs repeat them."""
PREFIXES = dict(zip(NAME_ENTITIES, ("sub", "ses", "acq", "ce", "rec", "run"), strict=True))
PRESENT, ABSENT = "*", None
"""Values of a filter: the entity must be there, with any value; it must not be there."""
NIPREPS = frozenset(("fmriprep", "smriprep", "nibabies", "fmriprep-infants"))
"""Programs whose derivatives hold preprocessed scans, in small letters."""
PREPROCESSED: Mapping[str, Any] = {"desc": "preproc", "space": ABSENT}
"""Filter for scans in such derivatives: preprocessed, and in their own space."""


@dataclass(frozen=True)
class Scan:
    """One scan to be registered.

    Attributes
    ----------
    image : Path
        Absolute path. It may be a link, as in a DataLad dataset.
    relative : str
        Path from the dataset's root.
    entities : dict of str to str
        Those of `NAME_ENTITIES` that are in its name.
    skull_stripped : bool
        ``SkullStripped`` in its sidecar, or in one that it inherits.
    mask : Path or None
        Mask of the object, from derivatives.
    lesion : Path or None
        Lesion mask, from derivatives or from the dataset itself.
    labels : Path or None
        Label image, from derivatives.
    problem : str
        A sentence that says why it cannot be registered. Empty where it can.
    alone : bool
        Whether fMRIPrep would conform no other scan together with it (`nio_pydra.bids.reference`).
    """

    image: Path
    relative: str
    entities: dict[str, str]
    skull_stripped: bool = False
    mask: Path | None = None
    lesion: Path | None = None
    labels: Path | None = None
    problem: str = ""
    alone: bool = True

    @property
    def name(self) -> str:
        """Part of the file name that identifies the scan, as ``sub-01_ses-02_run-1``."""
        return scan_name(self.entities)


def scan_name(entities: Mapping[str, str]) -> str:
    """Return the part of a file name that identifies a scan with these `NAME_ENTITIES`."""
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
    database: Path | None = None,
) -> list[Scan]:
    """Find the scans of a dataset, and log which masks are not used.

    Only files of the chosen participants are read. A file that cannot be used, for example a sidecar that is not JSON,
    is the `problem` of its scans.

    Parameters
    ----------
    bids_dir : Path
        Root of the dataset.
    participants, sessions : sequence of str
        Labels, with or without ``sub-`` or ``ses-``. Empty: all.
    filters : mapping, optional
        Entities that the scans must have, as `read_filters` returns them. In derivatives of fMRIPrep, `PREPROCESSED`
        holds for entities that it does not name.
    derivatives : mapping of str to Path, optional
        Derivative datasets by name. The first one that has a file for a scan is used.
    labels_desc : str, optional
        Label images are ``desc-<labels_desc>_dseg``. None: no label images.
    profile : Profile
        What is registered.
    database : Path, optional
        Folder of a PyBIDS database of the dataset, in which its files are looked up.

    Returns
    -------
    list of Scan
        Sorted by name.

    Raises
    ------
    InputError
        If a dataset cannot be read, a label does not exist, or no scan is found.
    """
    others = list((derivatives or {}).values())
    for root in (bids_dir, *others):
        require_dataset(root)
    preprocessed = _is_preprocessed(bids_dir)
    filters = {**(PREPROCESSED if preprocessed else {}), **(filters or {})}
    if preprocessed:
        log.info("%s holds derivatives of fMRIPrep: scans with %s are registered", bids_dir, _conditions(filters))
    if unknown := sorted(set(filters) - entity_names()):
        raise InputError(
            f"The filter for {profile.suffix} images cannot be used: BIDS has no entity {', '.join(unknown)}."
        )
    existing = participant_labels(bids_dir)
    chosen = _known(participants, existing, "sub-", "participant", bids_dir) if participants else existing
    if sessions:
        filters["session"] = [label.removeprefix("ses-") for label in sessions]
    indexed = None if database is None else indexed_files(bids_dir, database)
    top = list_sidecars(bids_dir)
    scans: list[Scan] = []
    found_sessions: set[str] = set()
    any_mask = False
    for label in chosen:
        raw = list_participant(bids_dir, label, profile, indexed)
        derived = [list_participant(root, label, profile) for root in others]
        found_sessions |= {str(file.entities["session"]) for file in raw.files if "session" in file.entities}
        any_mask |= any(
            file.path.match(f"*_desc-{profile.name}_mask.nii*") for listing in derived for file in listing.files
        )
        # A derivative dataset of scans holds their masks itself.
        masked = [*derived, raw] if preprocessed else derived
        scans += _scans_of(raw, derived, masked, top, filters, labels_desc, profile)
    of_whom = f" of participant {_shortened(chosen)}" if participants else ""
    _known(sessions, sorted(found_sessions), "ses-", "session", bids_dir, of_whom)
    if not scans:
        wanted = {**({"subject": chosen} if participants else {}), **filters}
        conditions = " with " * bool(wanted) + _conditions(wanted)
        raise InputError(
            f"{bids_dir} has no {profile.suffix} image{conditions}: expected files named "
            f"sub-<label>/{profile.datatype}/sub-<label>_{profile.suffix}.nii.gz."
        )
    if participants and (missing := sorted(set(chosen) - {scan.entities["subject"] for scan in scans})):
        absent = ", ".join(missing)
        raise InputError(f"{bids_dir} has no {profile.suffix} image of participant {absent}: leave them out.")
    if labels_desc and not any(scan.labels or scan.problem for scan in scans):
        raise InputError(f"No scan has a label image desc-{labels_desc}_dseg in the derivatives: is the name right?")
    scans.sort(key=lambda scan: scan.name)
    without = [scan.name for scan in scans if not (scan.mask or scan.problem)]
    if any_mask and without:
        have = "scan has" if len(without) == 1 else "scans have"
        log.info("%d %s no %s mask in the derivatives: %s", len(without), have, profile.name, _shortened(without))
    return scans


def _scans_of(
    raw: Listing,
    derived: Sequence[Listing],
    masked: Sequence[Listing],
    top: Sequence[DatasetFile],
    filters: Mapping[str, Any],
    labels: str | None,
    profile: Profile,
) -> list[Scan]:
    """Return the scans of one participant, each with its masks and labels."""
    images = [
        file
        for file in raw.files
        if _matches(file.entities.get("suffix"), filters.get("suffix", profile.suffix))
        and file.entities["extension"] in (".nii", ".nii.gz")
        and file.entities.get("part") not in ("phase", "imag", "real")
    ]
    chosen = [image for image in images if _all_match(image, filters)]
    # Copies of a scan in other spaces are no other scans.
    shown = {key: value for key, value in filters.items() if key in DESCRIBING}
    everyone = [image.entities for image in images if _all_match(image, shown)]
    masks = [
        (listing, [{"suffix": "mask", "desc": desc, "label": None}])
        for listing in masked
        for desc in (profile.name, OWN_MASK)
    ]
    sources: dict[str, Sequence[tuple[Listing, Sequence[Mapping[str, str | None]]]]] = {
        "mask": masks,
        "lesion": [(listing, LESION) for listing in (*derived, raw)],
        "labels": [(listing, [{"suffix": "dseg", "desc": labels}]) for listing in derived if labels],
    }
    kinds = {
        kind: [images_named(listing.files, names, profile) for listing, names in places]
        for kind, places in sources.items()
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
                    f"{twin.image} and {scan.image} would get the same output names: choose one (--bids-filter-file)."
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
            # The scans in this folder are unknown: one stands for all.
            scan = Scan(Path(), "", _name_entities(entities), problem=problem)
            scans.setdefault(scan.name, scan)
    return list(scans.values())


def _is_preprocessed(root: Path) -> bool:
    """Return whether a dataset holds derivatives of fMRIPrep or one of its relatives."""
    description = read_json(root / "dataset_description.json")
    listed = description.get("GeneratedBy")
    makers = [maker.get("Name") for maker in listed if isinstance(maker, dict)] if isinstance(listed, list) else []
    return description.get("DatasetType") == "derivative" and any(str(maker).lower() in NIPREPS for maker in makers)


def _conditions(filters: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in filters.items())


def _name_entities(entities: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(entities[key]) for key in NAME_ENTITIES if key in entities}


def _all_match(image: DatasetFile, filters: Mapping[str, Any]) -> bool:
    return all(_matches(image.entities.get(key), wanted) for key, wanted in filters.items())


def _matches(value: Any, wanted: Any) -> bool:
    """Return whether an entity (None: absent) is what a filter asks for. Numbers are compared as numbers."""
    if isinstance(wanted, list):
        return any(_matches(value, one) for one in wanted)
    if wanted is ABSENT or value is None:
        return value is wanted
    if isinstance(value, int) and str(wanted).isdigit():
        return value == int(wanted)
    return wanted == PRESENT or str(value) == str(wanted)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def read_filters(path: Path, profile: Profile = BRAIN) -> dict[str, Any]:
    """Read the filter for images of a profile from a BIDS filter file, as fMRIPrep defines it.

    Parameters
    ----------
    path : Path
        JSON file.
    profile : Profile
        What is registered. The key in the file is its suffix in small letters: ``t1w``.

    Returns
    -------
    dict
        Value by entity. None: the entity must be absent. ``*``: it must be there, with any value.

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


def _known(
    labels: Sequence[str], existing: Sequence[str], prefix: str, kind: str, root: Path, of_whom: str = ""
) -> list[str]:
    wanted = [label.removeprefix(prefix) for label in labels]
    unknown = [label for label in wanted if label not in existing]
    if unknown:
        found = "found" if of_whom else "it has"
        raise InputError(
            f"{root} has no {kind} {', '.join(unknown)}{of_whom}: {found} {_shortened(existing) or 'none'}."
        )
    return list(dict.fromkeys(wanted))
