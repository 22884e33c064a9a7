"""`nio-pydra`: the BIDS App."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.cli.adapt import DEFAULT_SCANS, adapted_in_output, scans_or_weights
from nio_pydra.cli.config_file import with_config_file, write_config_file
from nio_pydra.cli.dataset import (
    DatasetRun,
    add_dataset_options,
    clean_if_asked,
    open_dataset,
    refuse_loss,
    settings_of,
)
from nio_pydra.cli.errors import ended_by_signals, exit_status
from nio_pydra.cli.options import add_engine_options, add_jacobian_option, method_of
from nio_pydra.cli.run_log import log_ended, log_outcomes, log_start
from nio_pydra.cli.version import ShowVersion
from nio_pydra.engines.names import DEFAULT_ENGINE
from nio_pydra.errors import InputError
from nio_pydra.system.wording import counted

if TYPE_CHECKING:
    from nio_pydra.engines.methods import Method
    from nio_pydra.report.boilerplate import Boilerplate
    from nio_pydra.workflows.outcomes import Outcome
    from nio_pydra.workflows.settings import DatasetSettings

__all__ = ["main"]

log = logging.getLogger("nio_pydra")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the BIDS App; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = parser.parse_args(arguments)
    level = _group if options.level == "group" else _participant

    def action() -> int:
        chosen = with_config_file(parser, arguments, options)
        with log_ended():
            return level(chosen, shlex.join(["nio-pydra", *arguments]))

    return exit_status("nio-pydra", action, [options.out_dir, options.work_dir])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nio-pydra",
        description="Align every T1w scan of a BIDS dataset to an atlas by Neural Instance Optimization.",
    )
    add_dataset_options(parser)
    parser.add_argument(
        "level",
        choices=("participant", "group"),
        help="register the scans, or write a table and a page of their records",
    )
    pages = parser.add_argument_group("pages").add_mutually_exclusive_group()
    pages.add_argument(
        "--reports-only", action="store_true", help="write the pages of participants from what OUT_DIR holds, and end"
    )
    pages.add_argument(
        "--boilerplate-only", action="store_true", help="write logs/CITATION.md and logs/CITATION.bib, and end"
    )
    parser.add_argument("--version", action=ShowVersion)
    parser.add_argument(
        "--config-file", type=Path, metavar="FILE",
        help="TOML with options by their long names, as every run writes it to OUT_DIR/logs; those of the command line "
        "go first",
    )  # fmt: skip
    parser.add_argument(
        "--fmriprep-mask", action="store_true",
        help="write the mask also as desc-brain_mask, on the grid to which fMRIPrep conforms the scan: given to "
        "fMRIPrep with -d, it replaces the mask that fMRIPrep would make and refine",
    )  # fmt: skip
    add_engine_options(parser)
    add_jacobian_option(parser)
    parser.add_argument(
        "--adapt", nargs="?", type=scans_or_weights, const=DEFAULT_SCANS, metavar="N|FILE",
        help="adapt the network once to N scans of this run (default: %(const)s) and the atlas, keep its weights in "
        "OUT_DIR/weights, and register each scan by the preset adapted; or use the weights FILE of `nio adapt`",
    )  # fmt: skip
    parser.add_argument(
        "--sloppy", action="store_true", help="quick results of low quality, for tests: preset draft, or else fast"
    )
    return parser


def _participant(options: argparse.Namespace, command: str) -> int:
    if options.reports_only:
        return _write_reports(options)
    run = open_dataset(options)

    from nio_pydra.bids.description import write_description
    from nio_pydra.bids.records import refuse_mixture
    from nio_pydra.engines.methods import warn_if_adapted_to_others
    from nio_pydra.report.boilerplate import Boilerplate, write_boilerplate
    from nio_pydra.workflows.dataset import register_dataset

    for atlas in run.atlases:
        refuse_mixture(options.out_dir, atlas.space, options.engine, atlas.image)
    method = _method(options)
    settings = replace(
        settings_of(options, run, method), conformed_mask=options.fmriprep_mask, jacobian=options.output_jacobian
    )
    if not options.boilerplate_only:
        clean_if_asked(options)
    if isinstance(options.adapt, int):
        method = _adapted(options, run, settings)
        settings = replace(settings, method=method)
    warn_if_adapted_to_others(method, [atlas.image for atlas in run.atlases])
    write_description(options.out_dir, _with_weights(command, method), run.sources, options.profile)
    write_config_file(options, run.log_file.with_suffix(".toml"), command)
    boilerplate = Boilerplate(run.scans, run.atlases, method, settings.runtime, options.profile)
    texts = write_boilerplate(boilerplate, options.out_dir)
    if options.boilerplate_only:
        return _print_paths(texts)
    log_start(run, f"{method.name} ({method.preset})", options.profile.name)
    if options.fmriprep_mask and (several := [scan.name for scan in run.scans if not scan.alone]):
        log.warning(
            "No desc-brain_mask for %s, because fMRIPrep conforms them together with others of their participant or "
            "session: %s", counted(len(several), "scan"), ", ".join(several),
        )  # fmt: skip
    start = time.perf_counter()
    with ended_by_signals("nio-pydra"):
        outcomes = register_dataset(
            run.scans, run.atlases, settings, out_dir=options.out_dir, work_dir=options.work_dir
        )
    _report(boilerplate, outcomes, options.out_dir)
    return log_outcomes(outcomes, options.out_dir, time.perf_counter() - start)


def _method(options: argparse.Namespace) -> Method:
    """Return the method that the options name; with --adapt FILE, by these weights."""
    chosen = argparse.Namespace(**vars(options))  # the file of options repeats what the user gave
    if options.adapt is not None:
        if isinstance(options.adapt, Path) and options.weights is not None:
            raise InputError("--adapt FILE and --weights name weights both: leave out one.")
        if isinstance(options.adapt, Path):
            chosen.weights = options.adapt
        if options.engine == DEFAULT_ENGINE and not (options.preset or options.settings or options.sloppy):
            chosen.preset = "adapted"
    return method_of(chosen)


def _adapted(options: argparse.Namespace, run: DatasetRun, settings: DatasetSettings) -> Method:
    """Return the method of a run with weights that are adapted to its scans, now or by an earlier run."""
    if options.boilerplate_only:
        raise InputError("--boilerplate-only computes nothing: give the adapted weights with --adapt FILE.")
    with ended_by_signals("nio-pydra"):
        weights = adapted_in_output(run, settings, options.adapt, options.out_dir, options.work_dir)
    method = settings.method
    return replace(method, settings=replace(method.settings, weights=weights.absolute()))


def _with_weights(command: str, method: Method) -> str:
    """Return a command line for the description of the dataset, with what its weights were adapted to."""
    from nio_pydra.networks.checkpoints import adaptation_of, weights_digest

    weights = getattr(method.settings, "weights", None)
    if weights is None or (adapted := adaptation_of(weights)) is None:
        return command
    return (
        f"{command} (network weights {weights.name}, SHA-256 {weights_digest(weights)}, adapted to "
        f"{counted(adapted['scans'], 'scan')} and {adapted['atlas']['name']})"
    )


def _report(boilerplate: Boilerplate, outcomes: Sequence[Outcome], out_dir: Path) -> None:
    """Write the methods text, now that it is known which scans failed, and the pages of participants once more."""
    from nio_pydra.report.boilerplate import write_boilerplate
    from nio_pydra.report.participant import write_participant_pages

    left = {outcome.scan.name for outcome in outcomes if not outcome.started}
    failed = {outcome.scan.name for outcome in outcomes if outcome.reason and outcome.started}
    tried = [scan for scan in boilerplate.scans if scan.name not in left or scan.name in failed]
    write_boilerplate(replace(boilerplate, scans=tried, failed=failed), out_dir)
    ran = {f"sub-{scan.entities['subject']}" for scan in boilerplate.scans}
    # Beside the other scans of this run. Reading all records would cost every job of an array as much as the whole
    # dataset.
    write_participant_pages(out_dir, boilerplate.profile, sorted(ran), alone=True)


def _group(options: argparse.Namespace, command: str) -> int:
    from nio_pydra.bids.group import write_group_tables
    from nio_pydra.report.group import write_group_pages
    from nio_pydra.report.participant import write_participant_pages
    from nio_pydra.system.places import require_writable

    if not options.out_dir.is_dir():
        raise InputError(f"{options.out_dir} is not a folder: expected the output folder of the participant level.")
    refuse_loss(options)
    require_writable(options.out_dir, "output folder")
    tables = write_group_tables(options.out_dir, options.profile)
    write_participant_pages(options.out_dir, options.profile)  # now beside the whole dataset
    return _print_paths([*tables, *write_group_pages(options.out_dir, options.profile)])


def _write_reports(options: argparse.Namespace) -> int:
    """Write the pages of participants from what the output folder holds; return the exit status."""
    from nio_pydra.report.participant import write_participant_pages
    from nio_pydra.system.places import require_writable

    refuse_loss(options)
    require_writable(options.out_dir, "output folder")
    chosen = {f"sub-{label.removeprefix('sub-')}" for label in options.participant_label}
    pages = write_participant_pages(options.out_dir, options.profile, chosen or None)
    if not pages:
        whom = "these participants" if chosen else "a participant"
        raise InputError(f"{options.out_dir} has no record of {whom}: run it without --reports-only first.")
    return _print_paths(pages)


def _print_paths(paths: Sequence[Path]) -> int:
    for path in paths:
        print(path)
    return 0
