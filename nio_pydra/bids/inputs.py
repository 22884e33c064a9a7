"""T1w scans of a BIDS dataset, with the masks and label images that derivatives hold for them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nio_pydra.errors import InputError
from nio_pydra.system.files import atomic_path

if TYPE_CHECKING:
    from bids import BIDSLayout

__all__ = ["Scan", "find_scans", "open_layout", "read_filters", "scan_name"]

NAME_ENTITIES = ("subject", "session", "acquisition", "ceagent", "reconstruction", "run")
"""What tells one T1w scan from another; output names repeat these."""
PREFIXES = dict(zip(NAME_ENTITIES, ("sub", "ses", "acq", "ce", "rec", "run"), strict=True))
BRAIN = ({"suffix": "mask", "desc": "brain"},)
LESION = (
    {"suffix": "mask", "desc": "lesion"},
    {"suffix": "mask", "label": "lesion"},
    {"suffix": "roi", "label": "lesion"},  # as fMRIPrep wants them named
)
IGNORE = (
    # Only subjects' anatomical folders are indexed: a dataset may hold thousands of other files.
    r"^/(?!sub-)[^/]+/",
    r"^/(?!sub-)[^/.]+$",
    r"/(func|dwi|fmap|perf|eeg|meg|ieeg|beh|pet|micr|motion|nirs|mrs|figures|log)$",
    r"\.(html|svg|tsv|h5|gii|txt|mat|mgz)$",
)


@dataclass(frozen=True)
class Scan:
    """One T1w scan to be registered.

    Parameters
    ----------
    t1w : pathlib.Path
        Absolute; may be a link, as in a DataLad dataset.
    relative : str
        The same, from the dataset's root.
    entities : dict of str to str
        Those of `NAME_ENTITIES` that its name has.
    skull_stripped : bool
        What its sidecar (or one it inherits) says under ``SkullStripped``.
    mask, lesion, labels : pathlib.Path or None
        Brain mask, lesion mask and label image from derivatives.
    """

    t1w: Path
    relative: str
    entities: dict[str, str]
    skull_stripped: bool
    mask: Path | None = None
    lesion: Path | None = None
    labels: Path | None = None

    @property
    def name(self) -> str:
        """The part of its file name that identifies it, as ``sub-01_ses-02_run-1``."""
        return scan_name(self.entities)


def scan_name(entities: Mapping[str, str]) -> str:
    """Return the part of a T1w file's name that identifies it, from its `NAME_ENTITIES`."""
    return "_".join(f"{PREFIXES[key]}-{value}" for key, value in entities.items())


def find_scans(
    bids_dir: Path,
    work_dir: Path,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    filters: Mapping[str, Any] | None = None,
    derivatives: Mapping[str, Path] | None = None,
    labels_desc: str | None = None,
) -> list[Scan]:
    """Find the T1w scans of a dataset.

    Parameters
    ----------
    bids_dir : pathlib.Path
    work_dir : pathlib.Path
        Keeps the index of the dataset, which is made anew when a file of the dataset changed.
    participants, sessions : sequence of str
        Labels, with or without ``sub-`` / ``ses-``; empty means all.
    filters : mapping, optional
        Further pybids filters for the T1w query, as `read_filters` gives them.
    derivatives : mapping of str to pathlib.Path, optional
        Derivative datasets by name; the first that has a file for a scan is used.
    labels_desc : str, optional
        Label images are ``desc-<labels_desc>_dseg``; None looks for none.

    Returns
    -------
    list of Scan
        Sorted by name.

    Raises
    ------
    InputError
        If a dataset cannot be read, a label does not exist, or no T1w image is left.
    """
    layout = open_layout(bids_dir, work_dir / "index_raw")
    query: dict[str, Any] = {"suffix": "T1w", "extension": [".nii", ".nii.gz"], **(filters or {})}
    if participants:
        query["subject"] = _known(participants, layout.get_subjects(), "sub-", "participant", bids_dir)
    if sessions:
        query["session"] = _known(sessions, layout.get_sessions(), "ses-", "session", bids_dir)
    try:
        found = layout.get(**query)
    except ValueError as error:  # an entity that pybids does not know
        raise InputError(f"The filter for T1w images cannot be used: {error}") from None
    images = [image for image in found if image.entities.get("part") not in ("phase", "imag", "real")]
    if not images:
        chosen = ", ".join(f"{key}={value}" for key, value in query.items() if key not in ("suffix", "extension"))
        raise InputError(
            f"{bids_dir} has no T1w image{f' with {chosen}' if chosen else ''}: expected files named "
            "sub-<label>/anat/sub-<label>_T1w.nii.gz."
        )
    others = {
        name: open_layout(path, work_dir / f"index_{name}", derivative=True)
        for name, path in (derivatives or {}).items()
    }
    scans = []
    for image in images:
        entities = {key: str(image.entities[key]) for key in NAME_ENTITIES if key in image.entities}
        scans.append(
            Scan(
                t1w=Path(image.path),
                relative=str(image.relpath),
                entities=entities,
                skull_stripped=image.get_metadata().get("SkullStripped") is True,
                mask=_derived(others, entities, BRAIN),
                lesion=_derived(others, entities, LESION),
                labels=_derived(others, entities, ({"suffix": "dseg", "desc": labels_desc},)) if labels_desc else None,
            )
        )
    _refuse_surprises(scans, query.get("subject", []) if participants else [], labels_desc, bids_dir)
    return sorted(scans, key=lambda scan: scan.name)


def _refuse_surprises(scans: Sequence[Scan], participants: Sequence[str], labels_desc: str | None, root: Path) -> None:
    """Raise `InputError` where a request would quietly be met in part only."""
    files: dict[str, Path] = {}
    for scan in scans:
        if scan.name in files:
            raise InputError(
                f"{scan.t1w} and {files[scan.name]} would get the same output names: choose one (--bids-filter-file)."
            )
        files[scan.name] = scan.t1w
    there = {scan.entities["subject"] for scan in scans}
    if missing := [label for label in participants if label not in there]:
        raise InputError(f"{root} has no T1w image of participant {', '.join(missing)}: leave them out.")
    if labels_desc and not any(scan.labels for scan in scans):
        raise InputError(f"No scan has a label image desc-{labels_desc}_dseg in the derivatives: is the name right?")


def read_filters(path: Path) -> dict[str, Any]:
    """Read the ``t1w`` entry of a BIDS filter file, as fMRIPrep defines it.

    Returns
    -------
    dict
        Entities and values; ``null`` asks for the entity's absence.

    Raises
    ------
    InputError
        If the file is not JSON of that form.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a JSON filter file ({error}).") from None
    if not isinstance(content, dict) or not isinstance(content.get("t1w"), dict):
        raise InputError(f'{path} has no filter for T1w images: expected {{"t1w": {{"acquisition": "..."}}}}.')
    from bids.layout import Query

    special = {None: Query.NONE, "*": Query.ANY, "Query.NONE": Query.NONE, "Query.ANY": Query.ANY}
    return {
        key: special.get(value, value) if isinstance(value, str | None) else value
        for key, value in content["t1w"].items()
    }


def open_layout(root: Path, database: Path, *, derivative: bool = False) -> BIDSLayout:
    """Open a dataset, from its stored index where that is still true.

    Parameters
    ----------
    root : pathlib.Path
        Holds dataset_description.json.
    database : pathlib.Path
        Folder of the index.
    derivative : bool
        Whether the dataset is a derivative one.

    Raises
    ------
    InputError
        If the folder is no BIDS dataset.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: expected the root of a BIDS dataset.")
    description = root / "dataset_description.json"
    try:
        json.loads(description.read_text())
    except FileNotFoundError:
        raise InputError(
            f"{root} has no dataset_description.json: expected the root of a BIDS dataset, is it another folder?"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{description} cannot be read as JSON ({error}).") from None
    from bids import BIDSLayout, BIDSLayoutIndexer

    patterns = [re.compile(pattern) for pattern in IGNORE]
    state = _fingerprint(root, patterns)
    stored = database / "dataset.sha256"
    fresh = stored.exists() and stored.read_text() == state
    database.mkdir(parents=True, exist_ok=True)
    try:
        layout = BIDSLayout(
            root,
            validate=False,
            is_derivative=derivative,
            config=["bids", "derivatives"] if derivative else None,
            database_path=database,
            reset_database=not fresh,
            indexer=BIDSLayoutIndexer(validate=False, ignore=patterns),
        )
    except Exception as error:  # pybids lets the errors of its JSON and SQL layers through
        raise InputError(f"{root} cannot be indexed as a BIDS dataset ({error}).") from error
    with atomic_path(stored) as temporary:
        temporary.write_text(state)
    return layout


def _fingerprint(root: Path, patterns: Sequence[re.Pattern[str]]) -> str:
    """SHA-256 over name, size and time of every file that is indexed."""
    digest = hashlib.sha256(str(root.resolve()).encode())
    for folder, folders, files in os.walk(root):
        place = Path("/") / Path(folder).relative_to(root)
        ignored = lambda name, place=place: any(p.search(str(place / name)) for p in patterns)  # noqa: E731
        folders[:] = sorted(name for name in folders if not ignored(name))
        for name in sorted(files):
            if not ignored(name):
                found = (Path(folder) / name).stat(follow_symlinks=False)
                digest.update(f"{place / name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _known(labels: Sequence[str], existing: Sequence[str], prefix: str, kind: str, root: Path) -> list[str]:
    wanted = [label.removeprefix(prefix) for label in labels]
    unknown = [label for label in wanted if label not in existing]
    if unknown:
        there = ", ".join(sorted(existing)) or "none"
        raise InputError(f"{root} has no {kind} {', '.join(unknown)}: it has {there}.")
    return wanted


def _derived(
    layouts: Mapping[str, BIDSLayout], entities: dict[str, str], names: Sequence[dict[str, str]]
) -> Path | None:
    """Find the one file of these names that belongs to exactly this scan and lies in its space."""
    for name, layout in layouts.items():
        matches = {
            file.path
            for wanted in names
            for file in layout.get(subject=entities["subject"], extension=[".nii", ".nii.gz"], **wanted)
            if {key: str(file.entities[key]) for key in NAME_ENTITIES if key in file.entities} == entities
            and file.entities.get("space", "T1w") in ("T1w", "orig")
            # "sub-01_T2w_desc-lesion_mask" was drawn on another image.
            and {part for part in file.filename.split("_")[:-1] if "-" not in part} <= {"T1w"}
        }
        if len(matches) > 1:
            raise InputError(
                f"The derivatives {name} have {len(matches)} files for one scan: {', '.join(sorted(matches))}."
            )
        if matches:
            return Path(matches.pop())
    return None
