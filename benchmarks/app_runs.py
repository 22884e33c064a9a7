"""Calls of `nio-pydra` that several benchmarks share: what is registered to what, and the records of it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nio_pydra.networks.checkpoints import weights_digest
from nio_pydra.system.files import atomic_path

#: What every network is compared by: method to engine and preset.
METHODS = {"LapIRN": ("lapirn", "paper"), "NIO_m fast": ("nio_m", "fast"), "NIO_m": ("nio_m", "paper")}

#: Row of a table to participant to figures, what they depend on (`Bench.update`) and ``versions`` of the run.
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


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    name: str
    engine: str
    preset: str | None
    weights: Path | None


@dataclass(frozen=True)
class Bench:
    """Where runs are kept and how they are made.

    Attributes
    ----------
    out, work : Path
        The runs, a folder for each row; what they share, as the affines.
    threads : int
    speed_runs : Path or None
        Runs of `speed.py`, which are taken over.
    """

    out: Path
    work: Path
    threads: int
    speed_runs: Path | None

    def run(self, row: Row, scans: Scans) -> bool:
        """Register those scans that are missing; return whether all went well."""
        there = self.records(row, scans)
        return register(
            scans,
            [p for p in scans.participants if p not in there],
            self.out / slug(row.name),
            self.work,
            engine=row.engine,
            preset=row.preset,
            weights=row.weights,
            threads=self.threads,
        )

    def records(self, row: Row, scans: Scans) -> dict[str, dict[str, Any]]:
        """Participant to record of a run with these very weights, to the same atlas with as many threads."""
        found: dict[str, dict[str, Any]] = {}
        for participant in scans.participants:
            for record in [*self._of_app(row, scans, participant), *self._of_speed(row, scans, participant)]:
                if digest_in(record) == digest_of(row.weights):
                    found.setdefault(participant, record)
        return found

    def _of_app(self, row: Row, scans: Scans, participant: str) -> list[dict[str, Any]]:
        folder = self.out / slug(row.name) / f"sub-{participant}"
        paths = sorted(folder.rglob(f"*_space-{scans.atlas}_*_record.json"))
        return [record for path in paths if (record := json.loads(path.read_text()))["threads"] == self.threads]

    def _of_speed(self, row: Row, scans: Scans, participant: str) -> list[dict[str, Any]]:
        if self.speed_runs is None:
            return []
        path = self.speed_runs / f"{row.engine}_{row.preset}" / f"sub-{participant}" / "run.json"
        run = json.loads(path.read_text()) if path.is_file() else {}
        if "record" not in run:
            return []
        request = run["request"]
        same = request["threads"] == self.threads and Path(request["pair"]["fixed"]) == scans.atlas_image.resolve()
        return [run["record"]] if same else []

    def update(self, runs: Runs, row: Row, scans: Scans, figures: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Take the figures of all records into a row, and drop what it held of these scans under other conditions."""
        same = {"atlas": scans.atlas, "threads": self.threads, "weights": digest_of(row.weights)}
        held = runs.setdefault(row.name, {})
        for participant in scans.participants:
            old = held.get(participant)
            if old is not None and any(old[name] != value for name, value in same.items()):
                del held[participant]
        for participant, record in self.records(row, scans).items():
            versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
            held[participant] = figures(record) | same | {"versions": versions}


def stored_runs(table: Path) -> Runs:
    """What a table's data hold: they stand for runs whose records are gone."""
    path = table.with_suffix(".json")
    return json.loads(path.read_text()) if path.is_file() else {}


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
