"""`nio-pydra`: the BIDS App."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence

from nio_pydra.cli.dataset import (
    add_dataset_options,
    ended_by_signals,
    log_outcomes,
    log_start,
    open_dataset,
    refuse_loss,
    run_folders,
    settings_of,
)
from nio_pydra.cli.errors import exit_status
from nio_pydra.cli.options import add_engine_options, method_of
from nio_pydra.cli.version import ShowVersion
from nio_pydra.errors import InputError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the BIDS App; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    level = _group if options.level == "group" else _participant

    def action() -> int:
        with run_folders(options):
            return level(options, shlex.join(["nio-pydra", *arguments]))

    return exit_status("nio-pydra", action, [options.out_dir, options.work_dir])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nio-pydra",
        description="Align every T1w scan of a BIDS dataset to an atlas by Neural Instance Optimization.",
    )
    add_dataset_options(parser)
    parser.add_argument(
        "level", choices=("participant", "group"), help="register the scans, or write a table of their records"
    )
    parser.add_argument("--version", action=ShowVersion)
    add_engine_options(parser)
    return parser


def _participant(options: argparse.Namespace, command: str) -> int:
    run = open_dataset(options)

    from nio_pydra.bids.description import write_description
    from nio_pydra.bids.records import refuse_mixture
    from nio_pydra.workflows.dataset import register_dataset

    refuse_mixture(options.out_dir, run.atlas.space, options.engine, run.atlas.image)
    method = method_of(options)
    settings = settings_of(options, run, method)
    write_description(options.out_dir, command, run.sources, options.profile)
    log_start(run, f"{method.name} ({method.preset})", options.profile.name)
    start = time.perf_counter()
    with ended_by_signals("nio-pydra"):
        outcomes = register_dataset(run.scans, run.atlas, settings, out_dir=options.out_dir, work_dir=options.work_dir)
    return log_outcomes(outcomes, options.out_dir, time.perf_counter() - start)


def _group(options: argparse.Namespace, command: str) -> int:
    from nio_pydra.bids.description import require_writable
    from nio_pydra.bids.group import write_group_tables

    if not options.out_dir.is_dir():
        raise InputError(f"{options.out_dir} is not a folder: expected the output folder of the participant level.")
    refuse_loss(options)
    require_writable(options.out_dir, "output folder")
    for path in write_group_tables(options.out_dir, options.profile):
        print(path)
    return 0
