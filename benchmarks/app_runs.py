"""Calls of `nio-pydra` that several benchmarks share: what is registered to what, and the records of it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nio_pydra.networks.checkpoints import weights_digest
from nio_pydra.spatial.files import atomic_path

#: What every network is compared by: method to engine and preset.
METHODS = {"LapIRN": ("lapirn", "paper"), "NIO_m fast": ("nio_m", "fast"), "NIO_m": ("nio_m", "paper")}

#: Row of a table to participant to figures, what they depend on (`conditions`) and the ``versions`` of the run.
Runs = dict[str, dict[str, dict[str, Any]]]
DIGITS = 16  # of a digest in a table


@dataclass(frozen=True)
class Scans:
    """Scans of a BIDS dataset, one of which is the atlas.

    Attributes
    ----------
    dataset, labels : Path
        The dataset, and derivatives of it with ``desc-<desc>_dseg`` label maps.
    desc : str
    atlas : str
        Participant that the others are registered to.
    participants : tuple of str
        The others; of several sessions the first one counts.
    """

    dataset: Path
    labels: Path
    desc: str
    atlas: str
    participants: tuple[str, ...]

    @property
    def atlas_image(self) -> Path:
        """The atlas."""
        return self.dataset / f"sub-{self.atlas}" / "anat" / f"sub-{self.atlas}_T1w.nii.gz"


def register(
    scans: Scans,
    participants: Sequence[str],
    out: Path,
    work: Path,
    *,
    engine: str,
    preset: str | None,
    weights: Path | None = None,
    threads: int = 2,
) -> bool:
    """Register some of the scans, one call each, so that none shares the machine with another; say if all went well."""
    atlas = f"sub-{scans.atlas}"
    well = True
    for participant in participants:
        command = [Path(sys.executable).with_name("nio-pydra"), scans.dataset, out, "participant"]
        command += ["--participant-label", participant, "--engine", engine, "-w", work]
        sessions = sorted(path.name for path in (scans.dataset / f"sub-{participant}").glob("ses-*"))
        command += ["--session-label", sessions[0]] if sessions else []
        command += ["--atlas", scans.atlas_image, "--atlas-name", scans.atlas]
        command += ["--atlas-labels", scans.labels / atlas / "anat" / f"{atlas}_desc-{scans.desc}_dseg.nii.gz"]
        command += ["-d", f"manual={scans.labels}", "--labels-desc", scans.desc, "--omp-nthreads", threads]
        command += ["--preset", preset] if preset else []
        command += ["--weights", weights] if weights else []
        print(f"== {out.name}, sub-{participant}", flush=True)
        try:
            status = subprocess.run([str(part) for part in command]).returncode
        except OSError as error:
            print(f"{command[0]} cannot be run ({error.strerror})", file=sys.stderr)
            return False
        if status:
            print(f"{out.name}, sub-{participant}: nio-pydra ended with status {status}", file=sys.stderr)
        well = well and status == 0
    return well


def records(scans: Scans, participant: str, out: Path, threads: int) -> list[dict[str, Any]]:
    """The records of one participant that calls of :func:`register` left, to the same atlas with as many threads."""
    paths = sorted((out / f"sub-{participant}").rglob(f"*_space-{scans.atlas}_*_record.json"))
    found = [json.loads(path.read_text()) for path in paths]
    return [record for record in found if record["threads"] == threads]


def speed_records(
    scans: Scans, participant: str, folder: Path | None, engine: str, preset: str | None, threads: int
) -> list[dict[str, Any]]:
    """The record of a run of `speed.py`, where there is one with the same atlas and as many threads."""
    if folder is None:
        return []
    path = folder / f"{engine}_{preset}" / f"sub-{participant}" / "run.json"
    run = json.loads(path.read_text()) if path.is_file() else {}
    if "record" not in run:
        return []
    request = run["request"]
    same = request["threads"] == threads and Path(request["pair"]["fixed"]) == scans.atlas_image.resolve()
    return [run["record"]] if same else []


def stored_runs(table: Path) -> Runs:
    """What a table's data hold: they stand for runs whose records are gone."""
    path = table.with_suffix(".json")
    return json.loads(path.read_text()) if path.is_file() else {}


def conditions(scans: Scans, threads: int, weights: Path | None) -> dict[str, Any]:
    """What stored figures must have in common with a run to stand for it."""
    return {"atlas": scans.atlas, "threads": threads, "weights": digest_of(weights)}


def update(runs: Runs, row: str, scans: Scans, same: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    """Take the figures found into a row, and drop what it held of these scans under other conditions."""
    held = runs.setdefault(row, {})
    for participant in scans.participants:
        if participant in found:
            held[participant] = found[participant]
        elif any(held.get(participant, same)[name] != value for name, value in same.items()):
            del held[participant]


def write_table(table: Path, lines: list[str], runs: Runs) -> None:
    """Write a table, with the versions of its runs below, and its data beside it."""
    versions = sorted({run["versions"] for of in runs.values() for run in of.values()})
    table.parent.mkdir(parents=True, exist_ok=True)
    contents = {table: "\n".join([*lines, "", f"Versions: {'; or '.join(versions)}."])}
    contents[table.with_suffix(".json")] = json.dumps(runs, indent=1)
    for path, content in contents.items():
        with atomic_path(path) as temporary:  # the data may be the only copy
            temporary.write_text(content + "\n")
    print(f"written: {table}")


def versions_of(record: dict[str, Any]) -> str:
    """The versions that a run used."""
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def digest_of(weights: Path | None) -> str | None:
    """The digest of a network as tables show it."""
    return None if weights is None else weights_digest(weights)[:DIGITS]


def digest_in(record: dict[str, Any]) -> str | None:
    """The digest of the network that a run used."""
    return record["weights"]["sha256"][:DIGITS] if record.get("weights") else None


def slug(name: str) -> str:
    """A name as a folder."""
    return "_".join(name.lower().replace(",", "").replace("'", "").split())


def named_file(text: str) -> tuple[str, Path]:
    """NAME=FILE of a command line, for argparse."""
    name, _, file = text.partition("=")
    if not name or not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=FILE, a file that is there")
    return name, Path(file)
