"""What the commands share that work on a BIDS dataset: options, checks, folders."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.cli.options import memory, named_datasets, named_path, positive
from nio_pydra.cli.run_log import begin_log
from nio_pydra.cli.spaces import add_space_options, atlases_of, check_space_options
from nio_pydra.errors import InputError
from nio_pydra.system.slurm import require_usable

if TYPE_CHECKING:
    from nio_pydra.bids.atlas import Atlas
    from nio_pydra.bids.inputs import Scan
    from nio_pydra.engines.methods import Method
    from nio_pydra.workflows.settings import DatasetSettings

__all__ = [
    "DatasetRun", "add_dataset_options", "clean_if_asked", "open_dataset", "refuse_loss", "settings_of",
]  # fmt: skip

log = logging.getLogger("nio_pydra")

ACCEPTED = "accepted, as fMRIPrep has it: nothing is validated, and nothing is sent anywhere"
NOT_FOR_SLURM = {
    "nthreads": "give --omp-nthreads instead",
    "mem": "give --slurm-args='--mem=16G' instead",
    "stop_on_first_crash": "leave it out",
}
"""Options without a meaning for SLURM jobs, and what to do."""


@dataclass(frozen=True)
class DatasetRun:
    """What the options of a command name.

    Attributes
    ----------
    scans : list of Scan
        Scans to register.
    atlases : list of Atlas
        Atlases to align them to.
    sources : dict of str to Path
        Datasets that are read, by the names that BIDS URIs use.
    worker : str
        debug, cf or slurm.
    n_scans : int
        Number of scans at a time, at most.
    threads : int or None
        Threads of each scan. None: each SLURM job uses the CPUs that it was given.
    log_file : Path
        Log of this run.
    """

    scans: list[Scan]
    atlases: list[Atlas]
    sources: dict[str, Path]
    worker: str
    n_scans: int
    threads: int | None
    log_file: Path

    @property
    def atlas(self) -> Atlas:
        """The only atlas, for commands that take one."""
        (atlas,) = self.atlases
        return atlas


def add_dataset_options(parser: argparse.ArgumentParser, *, derivatives: bool = True) -> None:
    """Add the dataset, the output folder where `derivatives` are written, and options for scans, atlases and work."""
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="root of the BIDS dataset")
    if derivatives:
        parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder for the derivatives")
    scans = parser.add_argument_group("scans")
    scans.add_argument(
        "--participant-label", "--participant_label", nargs="+", action="extend", default=[], metavar="LABEL",
        help="with or without sub-",
    )  # fmt: skip
    scans.add_argument(
        "--session-label", "--session_label", nargs="+", action="extend", default=[], metavar="LABEL",
        help="with or without ses-",
    )  # fmt: skip
    scans.add_argument(
        "--bids-filter-file", type=Path, metavar="F",
        help='JSON: {"t1w": {entity: value}}; in derivatives of fMRIPrep the default is desc-preproc with no space',
    )  # fmt: skip
    scans.add_argument(
        "--bids-database-dir", type=Path, metavar="PATH",
        help="folder of a PyBIDS database of BIDS_DIR: files are looked up in it instead of in the folders; it is made "
        "where it is absent",
    )  # fmt: skip
    scans.add_argument(
        "--subject-anatomical-reference", choices=("first-lex", "sessionwise", "unbiased"),
        help="one pair of transforms, as fMRIPrep wants it, for each participant (first-lex: from the first scan) or "
        "for each session (sessionwise); default: for every scan",
    )  # fmt: skip
    scans.add_argument(
        "-d", "--derivatives", nargs="+", action="extend", default=[], type=named_path, metavar="[NAME=]PATH",
        help="derivative datasets with brain masks (desc-brain_mask), lesion masks (desc-lesion_mask, "
        "label-lesion_mask or label-lesion_roi) or label images; can be repeated",
    )  # fmt: skip
    scans.add_argument(
        "--labels-desc", metavar="DESC", help="label images of the scans are desc-DESC_dseg in the derivatives"
    )
    scans.add_argument(
        "--skull-stripped", action="store_true", help="scans and --atlas show brains only, whatever sidecars say"
    )
    scans.add_argument(
        "--skull-strip-t1w", choices=("auto", "skip", "force"),
        help="skip: scans show brains only, force: they do not, auto: those do whose outermost voxels are zero "
        "(default: as SkullStripped in their sidecars says); masks of derivatives are used in any case",
    )  # fmt: skip
    add_space_options(parser)

    work = parser.add_argument_group("work")
    work.add_argument("-w", "--work-dir", type=Path, default=Path("work"), metavar="WORK", help="(default: ./work)")
    work.add_argument(
        "--clean-workdir", action="store_true",
        help="delete what earlier runs left in the work folder, so that everything is computed anew",
    )  # fmt: skip
    work.add_argument(
        "--nprocs", type=positive, metavar="N",
        help="scans at a time (default: as many as --nthreads and --omp-nthreads allow, else 1)",
    )  # fmt: skip
    work.add_argument(
        "--nthreads", "--n_cpus", "--n-cpus", type=positive, metavar="N",
        help="threads of all scans at a time together (default: all cores)",
    )  # fmt: skip
    work.add_argument(
        "--omp-nthreads", type=positive, metavar="N",
        help="threads of each scan (default: OMP_NUM_THREADS; without it, scans share all cores, and there are no more "
        "scans at a time than cores)",
    )  # fmt: skip
    work.add_argument(
        "--mem", "--mem-mb", "--mem_mb", type=memory, metavar="MB",
        help="memory of all scans at a time together, in MB or as 16G: fewer scans are registered at a time if their "
        "predicted memory is more (default: that of the machine, and too many are refused)",
    )  # fmt: skip
    work.add_argument(
        "--worker", choices=("debug", "cf", "slurm"),
        help="debug: one task after another, cf: processes, slurm: a SLURM job for each scan, of which --nprocs above "
        "1 is the largest number at a time (default: cf if there are several scans at a time, else debug)",
    )  # fmt: skip
    work.add_argument(
        "--slurm-args", default="", metavar="'OPTIONS'",
        help="options of sbatch for each scan, as --slurm-args='--partition=short --time=2:00:00'; they replace what "
        "is derived from engine and preset, and so do SBATCH_* variables",
    )  # fmt: skip
    work.add_argument("--stop-on-first-crash", action="store_true", help="start no other scan after one has failed")
    work.add_argument(
        "-v", "--verbose", action="count", default=0, help="log which files belong to each scan; -vv: also pydra's log"
    )
    work.add_argument("--skip-bids-validation", "--skip_bids_validation", action="store_true", help=ACCEPTED)
    work.add_argument("--notrack", action="store_true", help=ACCEPTED)


def open_dataset(options: argparse.Namespace) -> DatasetRun:
    """Check folders and options, begin the log, and find the scans and the atlases.

    Raises
    ------
    InputError
        If an option cannot be met, or something would be overwritten.
    """
    check_space_options(options)
    if options.labels_desc and not options.derivatives:
        raise InputError("--labels-desc names label images of a derivative dataset: give it with -d NAME=PATH as well.")
    if options.subject_anatomical_reference == "unbiased":
        raise InputError(
            "--subject-anatomical-reference unbiased needs a template of all scans of a participant, which nio-pydra "
            "does not make: use first-lex or sessionwise, or give the preprocessed scans of fMRIPrep as BIDS_DIR."
        )
    if options.skull_stripped and options.skull_strip_t1w in ("auto", "force"):
        raise InputError(f"--skull-stripped contradicts --skull-strip-t1w {options.skull_strip_t1w}: leave out one.")
    if not options.bids_dir.is_dir():
        raise InputError(f"{options.bids_dir} is not a folder: expected the root of a BIDS dataset.")
    from nio_pydra.bids.ownership import refuse_other_dataset

    derivatives = refuse_loss(options)
    refuse_other_dataset(options.out_dir, options.bids_dir)

    from nio_pydra.system.places import require_writable

    require_writable(options.out_dir, "output folder")
    require_writable(options.work_dir, "work folder")
    log_file = begin_log(options.out_dir, options.verbose)
    n_scans, threads = _share_cores(options)
    if options.nprocs and n_scans < options.nprocs:
        why = "--worker debug" if options.worker == "debug" else "threads (--nthreads, --omp-nthreads) or cores"
        log.info("%d at a time, not the %d of --nprocs, because of %s", n_scans, options.nprocs, why)
    worker = options.worker or ("cf" if n_scans > 1 else "debug")
    if worker == "slurm":
        for name, advice in NOT_FOR_SLURM.items():
            if getattr(options, name):
                raise InputError(
                    f"--{name.replace('_', '-')} cannot be used with --worker slurm, where each scan is a job of its "
                    f"own: {advice}."
                )
        require_usable(options.slurm_args)
    elif options.slurm_args:
        raise InputError("--slurm-args belongs to --worker slurm: give both, or none.")

    from nio_pydra.bids.inputs import find_scans, read_filters
    from nio_pydra.bids.reference import reference_scans, refuse_other_references

    scans = find_scans(
        options.bids_dir,
        participants=options.participant_label,
        sessions=options.session_label,
        filters=read_filters(options.bids_filter_file, options.profile) if options.bids_filter_file else None,
        derivatives=derivatives,
        labels_desc=options.labels_desc,
        profile=options.profile,
        database=options.bids_database_dir,
    )
    scans = reference_scans(scans, options.subject_anatomical_reference)
    scans = [replace(scan, skull_stripped=_skull_stripped(scan, options)) for scan in scans]
    atlases = atlases_of(options, options.profile)
    refuse_other_references(options.out_dir, scans, atlases, options.subject_anatomical_reference)
    return DatasetRun(scans, atlases, {"raw": options.bids_dir, **derivatives}, worker, n_scans, threads, log_file)


def settings_of(options: argparse.Namespace, run: DatasetRun, method: Method) -> DatasetSettings:
    """Return the settings of a run with a method."""
    from nio_pydra.engines.contract import Runtime
    from nio_pydra.workflows.settings import DatasetSettings

    return DatasetSettings(
        method,
        Runtime(device=options.device, precision=options.precision, seed=options.random_seed),
        worker=run.worker,
        n_procs=run.n_scans,
        memory_mb=options.mem,
        stop_on_first_crash=options.stop_on_first_crash,
        threads=run.threads,
        slurm_args=options.slurm_args,
        labels_desc=options.labels_desc,
        profile=options.profile,
    )


def clean_if_asked(options: argparse.Namespace) -> None:
    """Delete what earlier runs left in the work folder, where --clean-workdir says so."""
    if options.clean_workdir:
        from nio_pydra.workflows.work_folder import clean_work_folder

        clean_work_folder(options.work_dir)


def _skull_stripped(scan: Scan, options: argparse.Namespace) -> bool:
    """Return whether a scan is zero outside the object, by the options, its voxels or its sidecar."""
    if options.skull_stripped or options.skull_strip_t1w == "skip":
        return True
    if options.skull_strip_t1w == "auto":
        from nio_pydra.engines.masks import background_is_zero

        return not scan.problem and background_is_zero(scan.image)
    return scan.skull_stripped and options.skull_strip_t1w != "force"


def refuse_loss(options: argparse.Namespace) -> dict[str, Path]:
    """Return the derivative datasets. Raise `InputError` if inputs or results of others would be overwritten."""
    from nio_pydra.bids.ownership import refuse_foreign_folder, refuse_inputs_as_output

    derivatives = named_datasets(options.derivatives)
    used = {"the dataset itself": options.bids_dir, **{f"-d {name}={path}": path for name, path in derivatives.items()}}
    refuse_inputs_as_output(options.out_dir, "output folder", used)
    refuse_inputs_as_output(options.work_dir, "work folder", used)
    refuse_foreign_folder(options.out_dir)
    return derivatives


def _share_cores(options: argparse.Namespace) -> tuple[int, int | None]:
    """Return the number of scans at a time and the threads of each, and set OMP_NUM_THREADS.

    It must be set before a library reads it. None: each SLURM job uses the CPUs that it was given.
    """
    from nio_pydra.system.cores import core_count, threads_asked_for

    scans, threads, together = options.nprocs, options.omp_nthreads, options.nthreads
    chosen = threads_asked_for()
    if options.worker == "slurm":
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        return scans or 1, threads or chosen
    if together is not None and threads is not None:
        threads = min(threads, together)
        scans = min(scans or together, together // threads)
    if options.worker == "debug" or scans is None:
        scans = 1
    if together is not None and threads is None:
        scans = min(scans, together)
        threads = min(chosen or together, together // scans)
    if threads is None and chosen is not None:
        return scans, chosen
    if threads is None:
        scans = min(scans, core_count())
        threads = core_count() // scans
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return scans, threads
