"""`nio-pydra`: the BIDS App."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.cli.errors import exit_status, signals_handled
from nio_pydra.cli.options import add_engine_options, method_of, named_datasets, named_path, positive
from nio_pydra.cli.version import ShowVersion
from nio_pydra.errors import InputError
from nio_pydra.system.processes import end_programs
from nio_pydra.system.scratch import discard_scratch

if TYPE_CHECKING:
    from nio_pydra.bids.atlas import Atlas
    from nio_pydra.workflows.dataset import DatasetSettings, Outcome

__all__ = ["main"]

log = logging.getLogger("nio_pydra")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the BIDS App; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    level = _group if options.level == "group" else _participant
    folders = (options.out_dir / "logs", options.out_dir, options.work_dir)
    absent = [folder for folder in folders if not folder.exists()]
    try:
        return exit_status(
            "nio-pydra",
            lambda: level(options, shlex.join(["nio-pydra", *arguments])),
            [options.out_dir, options.work_dir],
        )
    finally:
        _end_log()
        for folder in absent:
            with suppress(OSError):  # only empty folders can be deleted: those of a run that was refused
                folder.rmdir()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nio-pydra",
        description="Align every T1w scan of a BIDS dataset to an atlas by Neural Instance Optimization.",
    )
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="root of the BIDS dataset")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder for the derivatives")
    parser.add_argument(
        "level", choices=("participant", "group"), help="register the scans, or write a table of their records"
    )
    parser.add_argument("--version", action=ShowVersion)

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

    add_engine_options(parser)
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
        help="debug: one task after another, cf: processes, slurm: SLURM jobs, with options from SBATCH_* variables "
        "(default: cf if --nprocs is above 1, else debug)",
    )  # fmt: skip
    return parser


def _participant(options: argparse.Namespace, command: str) -> int:
    if options.template is None and (options.atlas is None or options.atlas_name is None):
        raise InputError("No atlas was chosen: give --template NAME, or --atlas IMAGE with --atlas-name NAME.")
    if options.template is not None and options.atlas_name is not None:
        raise InputError("--atlas-name belongs to --atlas IMAGE: a template has its own name.")
    if options.labels_desc and not options.derivatives:
        raise InputError("--labels-desc names label images of a derivative dataset: give it with -d NAME=PATH as well.")
    if not options.bids_dir.is_dir():
        raise InputError(f"{options.bids_dir} is not a folder: expected the root of a BIDS dataset.")
    from nio_pydra.bids.ownership import refuse_other_dataset

    derivatives = _refuse_loss(options)
    refuse_other_dataset(options.out_dir, options.bids_dir)

    from nio_pydra.bids.description import require_writable, write_description
    from nio_pydra.bids.records import refuse_mixture

    require_writable(options.out_dir, "output folder")
    require_writable(options.work_dir, "work folder")
    _begin_log(options.out_dir)
    worker = options.worker or ("cf" if options.nprocs > 1 else "debug")
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
    atlas = _atlas(options)
    refuse_mixture(options.out_dir, atlas.space, options.engine, atlas.image)
    method = method_of(options)

    from nio_pydra.engines.contract import Runtime
    from nio_pydra.version import version
    from nio_pydra.workflows.dataset import DatasetSettings, register_dataset

    settings = DatasetSettings(
        method,
        Runtime(device=options.device, precision=options.precision, seed=options.random_seed),
        skull_stripped=options.skull_stripped,
        worker=worker,
        n_procs=n_scans,
        labels_desc=options.labels_desc,
        profile=options.profile,
    )
    write_description(options.out_dir, command, {"raw": options.bids_dir, **derivatives}, options.profile)
    log.info(
        "nio_pydra %s: %d scans (found: %d %s masks, %d lesion masks, %d label images) to %s by %s (%s), "
        "%s at a time with %s threads",
        version(), len(scans), sum(scan.mask is not None for scan in scans), options.profile.name,
        sum(scan.lesion is not None for scan in scans), sum(scan.labels is not None for scan in scans),
        atlas.label, method.name, method.preset, "all" if worker == "slurm" else n_scans, threads or "all",
    )  # fmt: skip
    start = time.perf_counter()
    with _ended_by_signals():
        outcomes = register_dataset(scans, atlas, settings, out_dir=options.out_dir, work_dir=options.work_dir)
    return _report(outcomes, atlas, settings, options.out_dir, time.perf_counter() - start)


def _refuse_loss(options: argparse.Namespace) -> dict[str, Path]:
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

    It must be set before a library reads it. None: each SLURM job uses the cores that it was given.
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


def _group(options: argparse.Namespace, command: str) -> int:
    from nio_pydra.bids.description import require_writable
    from nio_pydra.bids.group import write_group_tables

    if not options.out_dir.is_dir():
        raise InputError(f"{options.out_dir} is not a folder: expected the output folder of the participant level.")
    _refuse_loss(options)
    require_writable(options.out_dir, "output folder")
    for path in write_group_tables(options.out_dir, options.profile):
        print(path)
    return 0


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
def _ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process at once.

    With an exception, pydra would store the running jobs as finished, and wait for them. Nothing is lost by ending at
    once: files are whole or absent, worker processes and their programs end with their parent, and the next run goes
    on from the last finished task.
    """

    def stop(number: int, frame: object) -> None:
        end_programs()
        discard_scratch()
        reason = "interrupted" if number == signal.SIGINT else "terminated"
        print(f"\nnio-pydra: {reason}; the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(128 + number)

    with signals_handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), stop):
        yield


def _report(outcomes: Sequence[Outcome], atlas: Atlas, settings: DatasetSettings, out_dir: Path, seconds: float) -> int:
    """Log the results of all scans, and store failures for the group level; return the exit status."""
    from nio_pydra.bids.outputs import engine_desc
    from nio_pydra.bids.records import Failure

    failed = [outcome for outcome in outcomes if outcome.reason]
    log.info("%d of %d scans done in %.0f s: %s", len(outcomes) - len(failed), len(outcomes), seconds, out_dir)
    if failed:
        log.error("%d failed:", len(failed))
        for outcome in failed:
            log.error("  %s: %s", outcome.scan.name, outcome.reason)
    method = settings.method
    desc = engine_desc(method.name)
    for outcome in outcomes:
        record = Failure(outcome.scan.name, atlas.space, desc, method.name, method.preset, outcome.reason)
        if outcome.reason:
            record.write(out_dir, outcome.details)
        else:
            record.forget(out_dir)
    return 1 if failed else 0
