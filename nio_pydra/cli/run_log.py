"""Log of a run on a BIDS dataset: on the terminal and in a file of its own."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.system.wording import counted

if TYPE_CHECKING:
    from nio_pydra.bids.inputs import Scan
    from nio_pydra.cli.dataset import DatasetRun
    from nio_pydra.workflows.outcomes import Outcome

__all__ = ["begin_log", "log_ended", "log_outcomes", "log_start"]

log = logging.getLogger("nio_pydra")


def begin_log(out_dir: Path, verbose: int = 0) -> Path:
    """Log to stdout and to a file in OUT_DIR/logs, whose path is returned.

    Messages of pydra are left out, because the report repeats them.
    """
    logging.getLogger("pydra").setLevel(logging.INFO if verbose > 1 else logging.CRITICAL)
    logging.raiseExceptions = False  # otherwise a full disk gives a traceback for every line
    folder = out_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    _end_log()
    file = _log_file(folder)
    log.handlers = [logging.StreamHandler(sys.stdout), file]
    for handler in log.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    return Path(file.baseFilename)


@contextmanager
def log_ended() -> Iterator[None]:
    """End the log after a command."""
    try:
        yield
    finally:
        _end_log()


def _end_log() -> None:
    """Close the log, and delete its file if it is empty, as after a refusal, and then its folder."""
    for handler in log.handlers:
        handler.close()
        if isinstance(handler, logging.FileHandler):
            path = Path(handler.baseFilename)
            if path.stat().st_size == 0:
                path.unlink()
                with suppress(OSError):  # it holds other logs
                    path.parent.rmdir()
    log.handlers = []


def _log_file(folder: Path) -> logging.FileHandler:
    """Open a file for this run alone. Another run may have the same second, or the same id in another container."""
    name = f"nio-pydra_{time.strftime('%Y%m%d-%H%M%S')}_{socket.gethostname()}_{os.getpid()}"
    for number in count():
        with suppress(FileExistsError):
            return logging.FileHandler(folder / f"{name}{f'_{number}' if number else ''}.log", "x")
    raise AssertionError


def log_start(run: DatasetRun, method: str, profile_name: str) -> None:
    """Log what will be registered, and how."""
    from nio_pydra.version import version

    scans = run.scans
    log.info(
        "nio_pydra %s: %s (found: %s, %s, %s) to %s by %s, %s at a time with %s threads",
        version(), counted(len(scans), "scan"),
        counted(sum(scan.mask is not None for scan in scans), f"{profile_name} mask"),
        counted(sum(scan.lesion is not None for scan in scans), "lesion mask"),
        counted(sum(scan.labels is not None for scan in scans), "label image"),
        " and ".join(atlas.label for atlas in run.atlases), method,
        "all" if run.worker == "slurm" and run.n_scans == 1 else run.n_scans, run.threads or "their jobs'",
    )  # fmt: skip
    for scan in scans:
        log.debug("%s: %s", scan.name, scan.problem or f"{scan.image}, {_belongings(scan)}")


def _belongings(scan: Scan) -> str:
    found = {"mask": scan.mask, "lesion mask": scan.lesion, "labels": scan.labels}
    texts = [f"{kind} {path or 'none'}" for kind, path in found.items()]
    return ", ".join([*texts, "skull-stripped"] if scan.skull_stripped else texts)


def log_outcomes(outcomes: Sequence[Outcome], out_dir: Path, seconds: float) -> int:
    """Log what became of the scans; return the exit status."""
    failed = [outcome for outcome in outcomes if outcome.reason]
    several = len({outcome.atlas.label for outcome in outcomes}) > 1
    every = counted(len(outcomes), "registration" if several else "scan")
    log.info("%d of %s done in %.0f s: %s", len(outcomes) - len(failed), every, seconds, out_dir)
    if failed:
        log.error("%d failed:", sum(outcome.started for outcome in failed))
        for outcome in failed:
            name = f"{outcome.scan.name} to {outcome.atlas.label}" if several else outcome.scan.name
            log.error("  %s: %s", name, outcome.reason)
    return 1 if failed else 0
