"""Records of single scans in a derivative dataset, both done and failed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nio_pydra.errors import InputError
from nio_pydra.system.files import contents_digest, read_json, write_text

__all__ = [
    "Failure", "Place", "Result", "done_records", "failures", "forget_failure", "latest_results", "name_entities",
    "read_record", "refuse_mixture", "value_at",
]  # fmt: skip

log = logging.getLogger("nio_pydra")

Place = tuple[str | int, ...]
"""Keys and indices that lead to a value of a record."""


@dataclass(frozen=True)
class Failure:
    """Record of a scan that could not be registered. The folder ``logs`` keeps it until the scan is done.

    Attributes
    ----------
    scan : str
        Name of the scan, as ``sub-01_ses-a``.
    space : dict of str to str
        Entities of the atlas's space.
    desc : str
        ``desc`` of the engine's results.
    engine, preset : str
        Names of the engine and of its preset.
    reason : str
        Why it failed, in a sentence.
    """

    scan: str
    space: dict[str, str]
    desc: str
    engine: str
    preset: str
    reason: str

    def write(self, out_dir: Path, report: str) -> None:
        """Write the record, and beside it a text file with what a bug report needs."""
        write_text(json.dumps(asdict(self), indent=2) + "\n", self._path(out_dir))
        write_text(report, self._path(out_dir).with_suffix(".txt"))

    def _path(self, out_dir: Path) -> Path:
        return _failure_path(out_dir, self.scan, self.space, self.desc)


def forget_failure(out_dir: Path, scan: str, space: Mapping[str, str], desc: str) -> None:
    """Delete the record of a failure, because the scan is done; see :class:`Failure` for its name."""
    path = _failure_path(out_dir, scan, space, desc)
    for own in (path, path.with_suffix(".txt"), out_dir / "logs" / f"{scan}_error.txt"):  # the last: its former name
        own.unlink(missing_ok=True)


def _failure_path(out_dir: Path, scan: str, space: Mapping[str, str], desc: str) -> Path:
    entities = "_".join(f"{key}-{value}" for key, value in space.items())
    return out_dir / "logs" / f"{scan}_{entities}_desc-{desc}_error.json"


@dataclass(frozen=True)
class Result:
    """What became of one scan with one atlas.

    Attributes
    ----------
    name : str
        Start of the names of its record and figures, as ``sub-01_ses-a_space-MNI_desc-nio``.
    entities : dict of str to str
        Entities of that name, by their short names.
    record : dict
        Its record; that of the failure if it failed.
    failed : bool
        Whether it failed in the latest run that it was part of.
    files_of_earlier_run : bool
        Whether it failed, and there are files of an earlier run.
    """

    name: str
    entities: dict[str, str]
    record: dict[str, Any]
    failed: bool = False
    files_of_earlier_run: bool = False

    @property
    def participant(self) -> str:
        """Participant, as ``sub-01``."""
        return f"sub-{self.entities['sub']}"

    @property
    def scan(self) -> str:
        """Scan, as ``sub-01_ses-a_run-1``."""
        return self.name.split("_space-")[0]

    @property
    def atlas(self) -> str:
        """Atlas with cohort and resolution, as ``MNIInfant:cohort-1:res-2``."""
        parts = [f"{key}-{self.entities[key]}" for key in ("cohort", "res") if key in self.entities]
        return ":".join([self.entities["space"], *parts])

    @property
    def reason(self) -> str:
        """Why it failed, in a line; empty if it did not."""
        return " ".join(str(self.record.get("reason", "")).split()) if self.failed else ""


def latest_results(out_dir: Path, participant: str = "sub-*", *, skip_damaged: bool = False) -> list[Result]:
    """Return what became of each scan with each atlas in the latest run that it was part of, sorted by name.

    Parameters
    ----------
    out_dir : Path
        Derivative dataset.
    participant : str
        As ``sub-01``. Default: all.
    skip_damaged : bool
        Whether to leave out records that cannot be read, and to log which.

    Raises
    ------
    InputError
        If a record cannot be read.
    """
    done = {path.stem.removesuffix("_record"): path for path in done_records(out_dir, participant)}
    failed = {path.stem.removesuffix("_error"): path for path in failures(out_dir, participant)}
    results = []
    for name in sorted(done | failed):
        path = failed.get(name) or done[name]
        try:
            record = read_record(path)
        except InputError as error:
            if not skip_damaged:
                raise
            log.warning("%s", error)
            continue
        results.append(Result(name, name_entities(path), record, name in failed, name in failed and name in done))
    return results


def name_entities(path: Path) -> dict[str, str]:
    """Return the entities of a record's name, by their short names. Empty if it is not the name of a record."""
    entities = dict(part.split("-", 1) for part in path.stem.split("_") if "-" in part)
    return entities if {"sub", "space", "desc"} <= set(entities) else {}


def done_records(out_dir: Path, participant: str = "sub-*") -> list[Path]:
    """Return the records of all scans that are done."""
    return [path for path in sorted(out_dir.glob(f"{participant}/**/*_record.json")) if name_entities(path)]


def failures(out_dir: Path, participant: str = "sub-*") -> list[Path]:
    """Return the records of all scans that failed."""
    return [path for path in sorted(out_dir.glob(f"logs/{participant}_*error.json")) if name_entities(path)]


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of one scan, done or failed.

    Raises
    ------
    InputError
        If the record is damaged.
    """
    advice = "delete it and run its scan again"
    record = read_json(path, advice)
    if not isinstance(record.get("engine"), str):
        raise InputError(f"{path} is not the record of a registration: {advice}.")
    return record


def value_at(record: Mapping[str, Any], place: Place) -> Any:
    """Return the value at a place of a record; None where there is none."""
    found: Any = record
    for key in place:
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError):
            return None
    return found


def refuse_mixture(out_dir: Path, space: Mapping[str, str], engine: str, atlas: Path) -> None:
    """Raise `InputError` if the folder holds results that this run would overwrite in part.

    Names of transforms and label images do not tell the engine, the resolution, or which image the atlas is. Damaged
    records are ignored here: either the scan gets a new record, or the group level reports it.
    """
    digest = contents_digest(atlas)
    for path in done_records(out_dir):
        name = name_entities(path)
        if (name["space"], name.get("cohort")) != (space["space"], space.get("cohort")):
            continue
        if name.get("res") != space.get("res"):
            raise InputError(
                f"{out_dir} holds results for another resolution of {space['space']} ({path.name}), and names of "
                "transforms do not say which: give this one an output folder of its own."
            )
        try:
            record = read_record(path)
        except InputError:
            continue
        if record.get("inputs", {}).get("fixed", digest) != digest:
            raise InputError(
                f"{out_dir} holds results for another image called {space['space']} ({path.name}): give {atlas} "
                "another --atlas-name, or an output folder of its own."
            )
        if (found := record["engine"]) != engine:
            raise InputError(
                f"{out_dir} holds results of the engine {found} for {space['space']} ({path.name}): give {engine} an "
                "output folder of its own."
            )
