"""What the commands share that work on a BIDS dataset: options, checks, log, signals."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.cli.errors import signals_handled
from nio_pydra.cli.options import named_datasets, named_path, positive
from nio_pydra.errors import InputError
from nio_pydra.system.processes import end_programs
from nio_pydra.system.scratch import discard_scratch
from nio_pydra.system.slurm import cancel_submitted, require_usable

if TYPE_CHECKING:
    from nio_pydra.bids.atlas import Atlas
    from nio_pydra.bids.inputs import Scan
    from nio_pydra.engines.methods import Method
    from nio_pydra.workflows.dataset import DatasetSettings, Outcome

__all__ = [
    "DatasetRun", "add_dataset_options", "ended_by_signals", "log_outcomes", "log_start", "open_dataset", "refuse_loss",
    "run_folders", "settings_of",
]  # fmt: skip

log = logging.getLogger("nio_pydra")


@dataclass(frozen=True)
class DatasetRun:
    """What the options of a command name.

    Attributes
    ----------
    scans : list of Scan
        Scans to register.
    atlas : Atlas
        Atlas to align them to.
    sources : dict of str to Path
        Datasets that are read, by the names that BIDS URIs use.
    worker : str
        debug, cf or slurm.
    n_scans : int
        Number of scans at a time.
    threads : int or None
        Threads of each scan. None: each SLURM job uses the CPUs that it was given.
    """

    scans: list[Scan]
    atlas: Atlas
    sources: dict[str, Path]
    worker: str
    n_scans: int
    threads: int | None


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Add the dataset, the output folder, and the options for scans, atlas and work."""
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="root of the BIDS dataset")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder for the derivatives")
    scans = parser.add_argument_group("scans")
    scans.add_argument("--participant-label", nargs="+", default=[], metavar="LABEL", help="with or without sub-")
    scans.add_argument("--session-label", nargs="+", default=[], metavar="LABEL", help="with or without ses-")
    scans.add_argument("--bids-filter-file", type=Path, metavar="F", help='JSON: {"t1w": {entity: value}}')
    scans.add_argument(
        "-d", "--derivatives", action="append", default=[], type=named_path, metavar="NAME=PATH",
        help="derivative dataset with brain masks (desc-brain_mask), lesion masks (desc-lesion_mask, "
        "label-lesion_mask or label-lesion_roi) or label images; can be repeated",
    )  # fmt: skip
    scans.add_argument(
        "--labels-desc", metavar="DESC", help="label images of the scans are desc-DESC_dseg in the derivatives"
    )
    scans.add_argument(
        "--skull-stripped", action="store_true", help="scans and --atlas show brains only, whatever sidecars say"
    )

    atlas = parser.add_argument_group("atlas")
    which = atlas.add_mutually_exclusive_group()
    which.add_argument(
        "--template",
        metavar="NAME[:cohort-C][:res-R]",
        help="TemplateFlow template, as MNI152NLin2009cAsym or MNIInfant:cohort-1:res-2",
    )
    which.add_argument("--atlas", type=Path, metavar="IMAGE", help="image file")
    atlas.add_argument("--atlas-name", metavar="NAME", help="name of --atlas in BIDS file names: letters and digits")
    atlas.add_argument("--atlas-labels", type=Path, metavar="DSEG", help="label image on the atlas's grid")
    atlas.add_argument("--atlas-mask", type=Path, metavar="MASK", help="brain mask on the atlas's grid")

    work = parser.add_argument_group("work")
    work.add_argument("-w", "--work-dir", type=Path, default=Path("work"), metavar="WORK", help="(default: ./work)")
    work.add_argument("--nprocs", type=positive, default=1, metavar="N", help="scans at a time (default: %(default)s)")
    work.add_argument(
        "--omp-nthreads", type=positive, metavar="N",
        help="threads of each scan (default: OMP_NUM_THREADS; without it, scans share all cores, and there are no more "
        "scans at a time than cores)",
    )  # fmt: skip
    work.add_argument(
        "--worker", choices=("debug", "cf", "slurm"),
        help="debug: one task after another, cf: processes, slurm: a SLURM job for each scan, of which --nprocs above "
        "1 is the largest number at a time (default: cf if --nprocs is above 1, else debug)",
    )  # fmt: skip
    work.add_argument(
        "--slurm-args", default="", metavar="'OPTIONS'",
        help="options of sbatch for each scan, as --slurm-args='--partition=short --time=2:00:00'; they replace what "
        "is derived from engine and preset, and so do SBATCH_* variables",
    )  # fmt: skip


def open_dataset(options: argparse.Namespace) -> DatasetRun:
    """Check folders and options, begin the log, and find the scans and the atlas.

    Raises
    ------
    InputError
        If an option cannot be met, or something would be overwritten.
    """
    if options.template is None and (options.atlas is None or options.atlas_name is None):
        raise InputError("No atlas was chosen: give --template NAME, or --atlas IMAGE with --atlas-name NAME.")
    if options.template is not None and options.atlas_name is not None:
        raise InputError("--atlas-name belongs to --atlas IMAGE: a template has its own name.")
    if options.labels_desc and not options.derivatives:
        raise InputError("--labels-desc names label images of a derivative dataset: give it with -d NAME=PATH as well.")
    if not options.bids_dir.is_dir():
        raise InputError(f"{options.bids_dir} is not a folder: expected the root of a BIDS dataset.")
    from nio_pydra.bids.ownership import refuse_other_dataset

    derivatives = refuse_loss(options)
    refuse_other_dataset(options.out_dir, options.bids_dir)

    from nio_pydra.bids.description import require_writable

    require_writable(options.out_dir, "output folder")
    require_writable(options.work_dir, "work folder")
    _begin_log(options.out_dir)
    worker = options.worker or ("cf" if options.nprocs > 1 else "debug")
    if worker == "slurm":
        require_usable(options.slurm_args)
    elif options.slurm_args:
        raise InputError("--slurm-args belongs to --worker slurm: give both, or none.")
    n_scans, threads = _share_cores(worker, options.nprocs, options.omp_nthreads)

    from nio_pydra.bids.inputs import find_scans, read_filters

    scans = find_scans(
        options.bids_dir,
        participants=options.participant_label,
        sessions=options.session_label,
        filters=read_filters(options.bids_filter_file, options.profile) if options.bids_filter_file else None,
        derivatives=derivatives,
        labels_desc=options.labels_desc,
        profile=options.profile,
    )
    return DatasetRun(scans, _atlas(options), {"raw": options.bids_dir, **derivatives}, worker, n_scans, threads)


def settings_of(options: argparse.Namespace, run: DatasetRun, method: Method) -> DatasetSettings:
    """Return the settings of a run with a method."""
    from nio_pydra.engines.contract import Runtime
    from nio_pydra.workflows.dataset import DatasetSettings

    return DatasetSettings(
        method,
        Runtime(device=options.device, precision=options.precision, seed=options.random_seed),
        skull_stripped=options.skull_stripped,
        worker=run.worker,
        n_procs=run.n_scans,
        threads=run.threads,
        slurm_args=options.slurm_args,
        labels_desc=options.labels_desc,
        profile=options.profile,
    )


@contextmanager
def run_folders(options: argparse.Namespace) -> Iterator[None]:
    """End the log after a command, and delete the folders that it made if they are still empty."""
    folders = (options.out_dir / "logs", options.out_dir, options.work_dir)
    absent = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        _end_log()
        for folder in absent:
            with suppress(OSError):  # only empty folders can be deleted: those of a run that was refused
                folder.rmdir()


def log_start(run: DatasetRun, method: str, profile_name: str) -> None:
    """Log what will be registered, and how."""
    from nio_pydra.version import version

    scans = run.scans
    log.info(
        "nio_pydra %s: %d scans (found: %d %s masks, %d lesion masks, %d label images) to %s by %s, "
        "%s at a time with %s threads",
        version(), len(scans), sum(scan.mask is not None for scan in scans), profile_name,
        sum(scan.lesion is not None for scan in scans), sum(scan.labels is not None for scan in scans),
        run.atlas.label, method, "all" if run.worker == "slurm" and run.n_scans == 1 else run.n_scans,
        run.threads or "their jobs'",
    )  # fmt: skip


def refuse_loss(options: argparse.Namespace) -> dict[str, Path]:
    """Return the derivative datasets. Raise `InputError` if inputs or results of others would be overwritten."""
    from nio_pydra.bids.ownership import refuse_foreign_folder, refuse_inputs_as_output

    derivatives = named_datasets(options.derivatives)
    used = {"the dataset itself": options.bids_dir, **{f"-d {name}={path}": path for name, path in derivatives.items()}}
    refuse_inputs_as_output(options.out_dir, "output folder", used)
    refuse_inputs_as_output(options.work_dir, "work folder", used)
    refuse_foreign_folder(options.out_dir)
    return derivatives


def _share_cores(worker: str, scans: int, threads: int | None) -> tuple[int, int | None]:
    """Return the number of scans at a time and the threads of each, and set OMP_NUM_THREADS.

    It must be set before a library reads it. None: each SLURM job uses the CPUs that it was given.
    """
    from nio_pydra.system.cores import core_count, threads_asked_for

    if worker == "debug":
        scans = 1
    if threads is None and (chosen := threads_asked_for()):
        return scans, chosen
    if threads is None and worker == "slurm":
        return scans, None
    if threads is None:
        scans = min(scans, core_count())
        threads = core_count() // scans
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return scans, threads


def _atlas(options: argparse.Namespace) -> Atlas:
    from nio_pydra.bids.atlas import atlas_from_files

    files = {"labels": options.atlas_labels, "mask": options.atlas_mask}
    if options.template is not None:
        from nio_pydra.bids.templates import atlas_from_template

        return atlas_from_template(options.template, **files, profile=options.profile)
    return atlas_from_files(options.atlas, options.atlas_name, **files, skull_stripped=options.skull_stripped)


def _begin_log(out_dir: Path) -> None:
    """Log to stdout and to OUT_DIR/logs. Messages of pydra are left out, because the report repeats them."""
    logging.getLogger("pydra").setLevel(logging.CRITICAL)
    logging.raiseExceptions = False  # otherwise a full disk gives a traceback for every line
    folder = out_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    _end_log()
    log.handlers = [logging.StreamHandler(sys.stdout), _log_file(folder)]
    for handler in log.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.propagate = False
    log.setLevel(logging.INFO)


def _end_log() -> None:
    """Close the log, and delete its file if it is empty."""
    for handler in log.handlers:
        handler.close()
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).stat().st_size == 0:
            Path(handler.baseFilename).unlink()
    log.handlers = []


def _log_file(folder: Path) -> logging.Handler:
    """Open a file for this run alone. Another run may have the same second, or the same id in another container."""
    name = f"nio-pydra_{time.strftime('%Y%m%d-%H%M%S')}_{socket.gethostname()}_{os.getpid()}"
    for number in count():
        with suppress(FileExistsError):
            return logging.FileHandler(folder / f"{name}{f'_{number}' if number else ''}.log", "x")
    raise AssertionError


@contextmanager
def ended_by_signals(program: str) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process at once.

    With an exception, pydra would store the running jobs as finished, and wait for them. Nothing is lost by ending at
    once: files are whole or absent, worker processes and their programs end with their parent, and the next run goes
    on from the last finished task.
    """

    def stop(number: int, frame: object) -> None:
        cancel_submitted()
        end_programs()
        discard_scratch()
        reason = "interrupted" if number == signal.SIGINT else "terminated"
        print(f"\n{program}: {reason}; the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(128 + number)

    with signals_handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), stop):
        yield


def log_outcomes(outcomes: Sequence[Outcome], out_dir: Path, seconds: float) -> int:
    """Log what became of the scans; return the exit status."""
    failed = [outcome for outcome in outcomes if outcome.reason]
    log.info("%d of %d scans done in %.0f s: %s", len(outcomes) - len(failed), len(outcomes), seconds, out_dir)
    if failed:
        log.error("%d failed:", len(failed))
        for outcome in failed:
            log.error("  %s: %s", outcome.scan.name, outcome.reason)
    return 1 if failed else 0
