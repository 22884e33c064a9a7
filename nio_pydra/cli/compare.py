"""Compare methods on the scans of a BIDS dataset with labels: same masks, same affine, tables, pictures and a page."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.cli.dataset import (
    add_dataset_options,
    ended_by_signals,
    log_outcomes,
    log_start,
    open_dataset,
    run_folders,
    settings_of,
)
from nio_pydra.cli.options import add_runtime_options
from nio_pydra.errors import InputError

if TYPE_CHECKING:
    from nio_pydra.engines.methods import Method

__all__ = ["add_arguments", "main"]

log = logging.getLogger("nio_pydra")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio compare`."""
    add_dataset_options(parser)
    add_runtime_options(parser)
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--engines", required=True, metavar="METHOD[,METHOD]",
        help="methods: ENGINE[:PRESET][@WEIGHTS][?SETTING=VALUE[&SETTING=VALUE]], as syn:precise or "
        "nio_m:fast?network.objective.weight=0.2; `nio engines` lists engines and presets",
    )  # fmt: skip
    group.add_argument(
        "--reference", metavar="METHOD", help="method that the others are tested against (default: the first nio_m)"
    )
    group.add_argument(
        "--label-names", type=Path, metavar="TSV", help="names of labels: columns index and name, group is optional"
    )
    group.add_argument("--title", help="title of the page (default: made of the names)")


def main(args: argparse.Namespace) -> int:
    """Compare methods; return the exit status."""
    with run_folders(args):
        return _compare(args)


def _compare(args: argparse.Namespace) -> int:
    names = list(dict.fromkeys(name.strip() for name in args.engines.split(",") if name.strip()))
    methods, left_out = _methods(names)
    reference = _reference(args.reference, list(methods))
    run = open_dataset(args)

    from nio_pydra.bids.description import write_description
    from nio_pydra.bids.records import refuse_mixture
    from nio_pydra.comparison.structures import Structures, read_structures
    from nio_pydra.workflows.compare import cases_of, folder_of
    from nio_pydra.workflows.dataset import register_dataset

    structures = Structures() if args.label_names is None else read_structures(args.label_names)
    cases = cases_of(run.scans, run.atlas)
    for name, reason in left_out.items():
        log.warning("%s is left out: %s", name, reason)
    command = shlex.join(["nio", *sys.argv[1:]])
    status = 0
    for name, method in methods.items():
        folder = folder_of(args.out_dir, name)
        refuse_mixture(folder, run.atlas.space, method.name, run.atlas.image)
        folder.mkdir(parents=True, exist_ok=True)
        write_description(folder, command, run.sources, args.profile)
        log_start(run, name, args.profile.name)
        start = time.perf_counter()
        with ended_by_signals("nio compare"):
            outcomes = register_dataset(
                cases, run.atlas, settings_of(args, run, method), out_dir=folder, work_dir=args.work_dir
            )
        status |= log_outcomes(outcomes, folder, time.perf_counter() - start)
        _write(
            _results(args, run, methods, left_out, reference, [case.name for case in cases], structures), args.out_dir
        )
    print(args.out_dir / "index.html")
    return status


def _methods(names: list[str]) -> tuple[dict[str, Method], dict[str, str]]:
    """Return the methods by name, and why others are left out: their program is not installed."""
    from nio_pydra.engines.methods import parse_method
    from nio_pydra.engines.names import get_engine

    methods, left_out = {}, {}
    for name in names:
        engine = name.partition(":")[0].partition("@")[0].partition("?")[0]
        if reason := get_engine(engine).available():
            left_out[name] = reason
            continue
        methods[name] = parse_method(name)
        methods[name].fingerprint()
    if not methods:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "--engines names none"
        raise InputError(f"There is no method to compare ({why}).")
    return methods, left_out


def _reference(chosen: str | None, names: list[str]) -> str:
    if chosen is not None and chosen not in names:
        raise InputError(f"--reference {chosen} is none of the methods: choose one of {', '.join(names)}.")
    return chosen or next((name for name in names if name.startswith("nio_m")), names[-1])
