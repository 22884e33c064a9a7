"""Adapt the network to an atlas and some scans of a BIDS dataset, once; run again to go on where it stopped."""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.cli.dataset import (
    DatasetRun,
    add_dataset_options,
    clean_if_asked,
    open_dataset,
    settings_of,
)
from nio_pydra.cli.errors import ended_by_signals
from nio_pydra.cli.options import add_runtime_options, positive
from nio_pydra.cli.run_log import log_ended, log_start
from nio_pydra.errors import InputError
from nio_pydra.system.files import one_at_a_time
from nio_pydra.system.wording import counted

if TYPE_CHECKING:
    from nio_pydra.bids.atlas import Atlas
    from nio_pydra.bids.inputs import Scan
    from nio_pydra.engines.methods import Method
    from nio_pydra.training.adaptation import AdaptationSettings
    from nio_pydra.workflows.settings import DatasetSettings

__all__ = [
    "DEFAULT_SCANS", "adapt_network", "adapted_in_output", "add_arguments", "main", "scans_or_weights",
]  # fmt: skip

log = logging.getLogger("nio_pydra")

DEFAULT_SCANS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio adapt`."""
    add_dataset_options(parser, derivatives=False)
    parser.add_argument("out_file", type=Path, metavar="OUT.safetensors", help="weights to write")
    group = parser.add_argument_group("adaptation")
    group.add_argument("--weights", type=Path, metavar="FILE", help="weights of LapIRN to start from (default: ours)")
    group.add_argument(
        "--n-scans", type=positive, metavar="N",
        help="scans to draw, one of a participant; a fifth of them is held out, to stop in time "
        f"(default: {DEFAULT_SCANS}, or all if there are fewer)",
    )  # fmt: skip
    group.add_argument(
        "--budget", type=float, metavar="MINUTES",
        help="time for the steps of the network at most; the affines come before, and nio-pydra with the same work "
        "folder uses them again (default: no limit)",
    )  # fmt: skip
    group.add_argument(
        "--iterations", type=int, nargs=3, metavar=("L1", "L2", "L3"),
        help="largest numbers of steps at levels 1 to 3, all scans together (default: 60 72 0)",
    )  # fmt: skip
    add_runtime_options(parser)


def main(args: argparse.Namespace) -> int:
    """Adapt a network; return the exit status."""
    args.out_dir = args.work_dir / "nio_pydra" / "adapt"  # takes the log
    with log_ended():
        return _adapt(args)


def _adapt(args: argparse.Namespace) -> int:
    from nio_pydra.engines.methods import choose_method
    from nio_pydra.system.places import require_writable

    target: Path = args.out_file
    if target.exists():
        raise InputError(f"{target} exists: choose another name, or delete it to adapt anew.")
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: expected a name that ends in .safetensors.")
    if args.worker == "slurm":
        raise InputError(
            "nio adapt runs where it is started: leave out --worker slurm, and submit the command itself as a job "
            "(sbatch --cpus-per-task=4 --wrap='nio adapt ...')."
        )
    for name in ("mem", "stop_on_first_crash"):
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} has no meaning for nio adapt: leave it out.")
    settings = _settings(args)
    require_writable(target.absolute().parent, "folder of the weights")
    run = open_dataset(args)
    if len(run.atlases) > 1:
        raise InputError("nio adapt takes one atlas: give one, and adapt to the others with files of their own.")
    method = choose_method("lapirn", weights=args.weights)
    clean_if_asked(args)
    log_start(run, f"adaptation of {(args.weights or Path('the default weights')).name}", args.profile.name)
    start = time.perf_counter()
    with ended_by_signals("nio adapt"):
        adapted = adapt_network(run, settings_of(args, run, method), settings, args.n_scans, args.work_dir)
    _copy(adapted, target)
    log.info("adapted in %.0f s: %s", time.perf_counter() - start, target)
    return 0


def _settings(args: argparse.Namespace) -> AdaptationSettings:
    from nio_pydra.training.adaptation import AdaptationSettings

    try:
        settings = AdaptationSettings(minutes=args.budget)
        return replace(settings, iterations=tuple(args.iterations)) if args.iterations else settings
    except ValueError as error:
        raise InputError(f"The network cannot be adapted so: {error}.") from None


def scans_or_weights(text: str) -> int | Path:
    """Parse the value of --adapt: a number of scans, or a file of weights."""
    return positive(text) if text.isdecimal() else Path(text)


def adapt_network(
    run: DatasetRun, settings: DatasetSettings, schedule: AdaptationSettings, wanted: int | None, work_dir: Path
) -> Path:
    """Draw scans of a run, align them, and adapt the weights of its method to them.

    Parameters
    ----------
    run : DatasetRun
        Scans and the atlas.
    settings : DatasetSettings
        Method, whose weights are adapted, and runtime. The seed draws the scans.
    schedule : AdaptationSettings
        Schedule.
    wanted : int or None
        Number of scans. None: `DEFAULT_SCANS`, or all if there are fewer.
    work_dir : Path
        Folder for the affines and for what a killed run goes on from.

    Returns
    -------
    Path
        Weights in the work folder.

    Raises
    ------
    InputError
        If no scan can be used, or the weights cannot be adapted.
    ComputationError
        If the adaptation diverges.
    """
    from nio_pydra.optimize.nio import NIOSettings
    from nio_pydra.training.adaptation import adapt, held_out_of
    from nio_pydra.workflows.align import align_scans
    from nio_pydra.workflows.cache import own_folder

    weights = settings.method.settings.weights
    # Refuses what is not LapIRN, also where the engine has weights of its own.
    settings.method.engine.fingerprint(replace(settings.method.settings, network=NIOSettings()))
    drawn = _drawn(run.scans, settings.runtime.seed)
    if wanted is not None and wanted > len(drawn):
        log.warning("%s: all of them are used, not the %d asked for", counted(len(drawn), "participant"), wanted)
    wanted = min(wanted or DEFAULT_SCANS, len(drawn))
    log.info("adaptation: aligning %s", counted(wanted, "scan"))
    cache = own_folder(work_dir) / "adapted"
    atlas, scans = align_scans(drawn, wanted, run.atlas, settings, work_dir)
    if not scans:
        raise InputError("No scan could be aligned, so there is none to adapt the network to: see the reasons above.")
    if not (held_out := held_out_of(len(scans))):
        log.warning("There is one scan only: none is held out to tell when the adaptation no longer helps other scans.")
    log.info("adaptation: %s to learn from, %d held out", counted(len(scans) - held_out, "scan"), held_out)
    return adapt(
        atlas,
        scans,
        cache,
        schedule,
        weights=weights,
        runtime=replace(settings.runtime, threads=run.n_scans * (run.threads or 1)),  # of all scans at a time together
        profile=settings.profile,
        log=lambda line: log.info("adaptation: %s", line),
    )


def _drawn(scans: list[Scan], seed: int) -> list[Scan]:
    """Return the first scan of each participant, in an order that the seed decides.

    Another scan of a participant that the network learned from would not tell whether it helps others.
    """
    import numpy as np

    first: dict[str, Scan] = {}
    for scan in scans:
        first.setdefault(scan.entities["subject"], scan)
    several = list(first.values())
    return [several[number] for number in np.random.default_rng(seed).permutation(len(several))]


def adapted_in_output(run: DatasetRun, settings: DatasetSettings, wanted: int, out_dir: Path, work_dir: Path) -> Path:
    """Return the adapted weights in an output folder, made now if they are absent.

    Raises
    ------
    InputError
        If they were adapted from other weights or to another atlas, or cannot be made here.
    """
    from nio_pydra.engines.names import get_engine

    if len(run.atlases) > 1:
        raise InputError("--adapt takes one atlas: run it for each atlas; the runs can share the output folder.")
    atlas: Atlas = run.atlas
    method: Method = settings.method
    if "weights" not in vars(method.settings) or get_engine(method.name).weights_used(method.settings) is None:
        raise InputError(f"--adapt needs an engine with a network, but {method.name} has none: use nio_m.")
    path = out_dir / "weights" / f"adapted_{atlas.label}.safetensors"
    # Runs for parts of a dataset can share the output folder, and all of them must use the same weights.
    lock = out_dir / "logs" / f"adapted_{atlas.label}.lock"
    with one_at_a_time(lock, lambda: log.info("another run makes %s: waiting for it", path)):
        _adapt_in_output(run, settings, wanted, path, work_dir)
    return path


def _adapt_in_output(run: DatasetRun, settings: DatasetSettings, wanted: int, path: Path, work_dir: Path) -> None:
    from nio_pydra.engines.methods import is_adapted_to
    from nio_pydra.networks.checkpoints import adaptation_of, default_weights, weights_digest
    from nio_pydra.training.adaptation import AdaptationSettings

    atlas, method = run.atlas, settings.method
    if path.is_file():
        adapted = adaptation_of(path) or {}
        base = weights_digest(method.settings.weights or default_weights())
        if adapted.get("from", {}).get("sha256") != base or not is_adapted_to(adapted, atlas.image):
            raise InputError(
                f"{path} was adapted from other weights or to another atlas: give another output folder, or "
                f"--adapt {path} to use it."
            )
        log.info("weights of an earlier run, adapted to %s: %s", counted(adapted["scans"], "scan"), path)
        if wanted not in (DEFAULT_SCANS, adapted["scans"]) or adapted["seed"] != settings.runtime.seed:
            log.warning(
                "%s was adapted to %s with the random seed %d, not to %d with %d as asked for now: delete it to adapt "
                "anew, or give another output folder.",
                path, counted(adapted["scans"], "scan"), adapted["seed"], wanted, settings.runtime.seed,
            )  # fmt: skip
        return
    if settings.worker == "slurm":
        raise InputError(
            f"--adapt {wanted} computes before the jobs are submitted: make the weights in a job of their own (sbatch "
            "--cpus-per-task=4 --wrap='nio adapt BIDS_DIR adapted.safetensors ...'), then give --adapt "
            "adapted.safetensors."
        )
    if len({scan.entities["subject"] for scan in run.scans}) < 2:
        raise InputError(
            "--adapt draws its scans among those of this run, which has one participant: adapt once to several with "
            "`nio adapt`, then give --adapt FILE."
        )
    _copy(adapt_network(run, settings, AdaptationSettings(), wanted, work_dir), path)


def _copy(weights: Path, target: Path) -> None:
    from nio_pydra.system.files import atomic_path

    with atomic_path(target) as temporary:
        shutil.copyfile(weights, temporary)
