"""Compare methods on the scans of a BIDS dataset with labels: same masks, same affine, tables, pictures and a page."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import time
from dataclasses import dataclass, replace
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
from nio_pydra.cli.options import add_runtime_options
from nio_pydra.cli.run_log import log_ended, log_outcomes, log_start
from nio_pydra.errors import InputError
from nio_pydra.system.cores import core_count, processor_name
from nio_pydra.system.files import atomic_path, write_text
from nio_pydra.system.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from nio_pydra.comparison.earlier import EarlierCases
    from nio_pydra.comparison.results import MethodDescription, Results
    from nio_pydra.comparison.structures import Structures
    from nio_pydra.engines.methods import Method

__all__ = ["add_arguments", "main"]

log = logging.getLogger("nio_pydra")

PAGE = "index.html"


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
        "--reference",
        metavar="METHOD",
        help="method that the others are tested against (default: the first nio_m, else the last)",
    )
    group.add_argument(
        "--test", metavar="METHOD[,METHOD]",
        help="methods that are tested against the reference; fewer need fewer scans to differ significantly, and they "
        "must be chosen before looking (default: all without settings of their own)",
    )  # fmt: skip
    group.add_argument(
        "--label-names", type=Path, metavar="TSV", help="names of labels: columns index and name, group is optional"
    )
    group.add_argument(
        "--tables-only", action="store_true", help="register nothing: write tables, pictures and page of what is done"
    )
    group.add_argument(
        "--earlier", type=Path, metavar="TSV",
        help="cases.tsv of another run, by another machine for example: its cases of the same images, settings and "
        "weights stand in the tables and are not run again",
    )  # fmt: skip
    group.add_argument("--title", help="title of the page (default: made of the names)")


def main(args: argparse.Namespace) -> int:
    """Compare methods; return the exit status."""
    with log_ended():
        return _compare(args)


def _compare(args: argparse.Namespace) -> int:
    run = open_dataset(args)  # first of all, as it sets the number of threads
    if len(run.atlases) > 1:
        raise InputError("nio compare takes one atlas: give one, and run the others with folders of their own.")

    from nio_pydra.bids.description import write_description
    from nio_pydra.bids.records import refuse_mixture
    from nio_pydra.comparison.earlier import NO_CASES, read_earlier
    from nio_pydra.comparison.scope import cases_of, folder_of, require_own_folders
    from nio_pydra.engines.methods import split_methods, warn_if_adapted_to_others
    from nio_pydra.workflows.dataset import register_dataset

    names = split_methods(args.engines)
    found, run = run.scans, replace(run, scans=cases_of(run.scans, run.atlas))
    earlier = NO_CASES if args.earlier is None else read_earlier(args.earlier, run.scans, run.atlas)
    methods, absent, left_out, earlier = _methods(names, run, args.out_dir, earlier)
    require_own_folders(args.out_dir, list(methods))
    reference = _reference(args.reference, list(methods))
    tested = _tested(args.test, reference, names)
    structures = _structures(args, run)
    if unlabelled := [scan.name for scan in found if scan.labels is None]:
        log.warning("Scans without labels are left out: %s", ", ".join(unlabelled))
    command = shlex.join(["nio", *sys.argv[1:]])
    for name, reason in left_out.items():
        log.warning("%s is left out: %s", name, reason)
    for name, reason in absent.items():
        log.warning("%s is not run, only its earlier results are shown: %s", name, reason)
    described = {
        name: _description(name, method, folder_of(args.out_dir, name), runs=name not in absent)
        for name, method in methods.items()
    }
    plan = Plan(run, described, list(absent), left_out, reference, tested, structures, earlier, args.title, command)
    missing = {name: [scan for scan in run.scans if scan.name not in earlier.of(name)] for name in methods}
    usable = {name: method for name, method in methods.items() if name not in absent and missing[name]}
    if args.tables_only or not usable:
        results = plan.results()
        if results.cases.empty:
            raise InputError(
                f"{args.out_dir} holds no case of {', '.join(methods)} to {run.atlas.name}: run the same command "
                "without --tables-only first."
            )
        _write(results, args.out_dir)
        print(args.out_dir / PAGE)
        return 0
    clean_if_asked(args)
    for name, method in usable.items():
        folder = folder_of(args.out_dir, name)
        refuse_mixture(folder, run.atlas.space, method.name, run.atlas.image)
        folder.mkdir(parents=True, exist_ok=True)
        write_description(folder, command, run.sources, args.profile)
    log_start(run, ", ".join(usable), args.profile.name)
    for method in usable.values():
        warn_if_adapted_to_others(method, [run.atlas.image])
    # All methods share the work folder: the masks and the affine of a scan are computed once.
    status, stopped = 0, {}
    with ended_by_signals("nio compare"):
        for name, method in usable.items():
            settings = replace(settings_of(args, run, method), figures=False)  # the comparison draws its own
            folder, start = folder_of(args.out_dir, name), time.perf_counter()
            try:
                outcomes = register_dataset(
                    missing[name], run.atlases, settings, out_dir=folder, work_dir=args.work_dir
                )
            except InputError as error:  # the other methods go on
                stopped[name] = error
                log.error("%s cannot be run: %s", name, error)
                continue
            status |= log_outcomes(outcomes, folder, time.perf_counter() - start)
            _write(plan.results(), args.out_dir)
            if status and args.stop_on_first_crash:
                log.error("No other method is run (--stop-on-first-crash).")
                break
    if len(stopped) == len(usable):
        raise next(iter(stopped.values()))
    print(args.out_dir / PAGE)
    return 1 if stopped else status


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes
    ----------
    run : DatasetRun
        Scans and atlas.
    methods : dict of str to MethodDescription
        Methods by name.
    not_run : list of str
        Those of them whose program or weights are not here: only their earlier results are shown.
    left_out : dict of str to str
        Why other methods have neither been run nor have results, by name.
    reference : str
        Method that the others are tested against.
    tested : list of str
        Methods that are tested.
    structures : Structures
        Names and groups of labels.
    earlier : EarlierCases
        Cases of another run.
    title : str or None
        Title of the page.
    command : str
        Command line.
    """

    run: DatasetRun
    methods: dict[str, MethodDescription]
    not_run: list[str]
    left_out: dict[str, str]
    reference: str
    tested: list[str]
    structures: Structures
    earlier: EarlierCases
    title: str | None
    command: str

    def results(self) -> Results:
        """Return what there is so far in the folders of the methods."""
        from nio_pydra.comparison.cases import gather_cases
        from nio_pydra.comparison.results import Results

        scans = [scan.name for scan in self.run.scans]
        folders = {name: method.folder for name, method in self.methods.items()}
        cases, labels = self.earlier.added_to(
            *gather_cases(folders, scans, self.structures, self.run.atlas.space), list(self.methods), scans
        )
        taken = len(self.earlier.cases)
        return Results(
            title=self.title
            or f"{counted(len(self.methods), 'method')}, {counted(len(scans), 'scan')} to {self.run.atlas.label}",
            atlas=self.run.atlas,
            scans=scans,
            methods={name: _with_weights(own, name, cases) for name, own in self.methods.items()},
            reference=self.reference,
            tested=self.tested,
            cases=cases,
            labels=labels,
            not_run=self.not_run,
            left_out=self.left_out,
            command=self.command,
            machine={
                "Date": time.strftime("%Y-%m-%d"),
                "Processor": f"{processor_name()}, {core_count()} cores",
                "Load when the tables were written": f"{os.getloadavg()[0]:.1f}",
                **({"Taken over from another run": counted(taken, "case")} if taken else {}),
            },
        )


def _description(name: str, method: Method, folder: Path, *, runs: bool) -> MethodDescription:
    from nio_pydra.comparison.results import MethodDescription
    from nio_pydra.engines.methods import split_method

    # The weights of a method that does not run here can be absent: its cases tell of them.
    weights, training_data = (runs and method.engine.weights_used(method.settings)) or (None, None)
    changes = split_method(name).settings or ""
    return MethodDescription(
        folder, method.name, method.preset, method.engine.citation, changes, weights, training_data
    )


def _with_weights(method: MethodDescription, name: str, cases: pd.DataFrame) -> MethodDescription:
    """Return the description with the weights of its cases, if it names none itself."""
    if method.weights is not None or "weights" not in cases:
        return method
    own = cases[cases["method"] == name]
    used = own.dropna(subset="weights")
    if used.empty:
        return method
    data = used["training_data"].dropna()  # records of before do not say it
    return replace(method, weights=used["weights"].iloc[0], training_data=data.iloc[0] if len(data) else None)


def _write(results: Results, out_dir: Path) -> None:
    """Write tables, pictures and the page of what is done so far."""
    from nio_pydra.comparison.figures import write_figures
    from nio_pydra.comparison.page import write_page
    from nio_pydra.comparison.tables import markdown

    tables = {
        "cases.tsv": results.cases,
        "labels.tsv": results.labels,
        "summary.tsv": results.summary.reset_index(),
        "statistics.tsv": results.tests.reset_index(),
    }
    for name, table in tables.items():
        with atomic_path(out_dir / name) as temporary:
            table.to_csv(temporary, sep="\t", index=False, na_rep="n/a")
    write_text(markdown(results), out_dir / "summary.md")
    write_page(results, write_figures(results, out_dir / "figures"), out_dir / PAGE)


def _structures(args: argparse.Namespace, run: DatasetRun) -> Structures:
    """Return the names of labels: from the table given, or from the one that BIDS has beside the labels."""
    from nio_pydra.comparison.structures import Structures, read_structures

    beside = [path / f"desc-{args.labels_desc}_dseg.tsv" for path in run.sources.values()]
    table = args.label_names or next((path for path in beside if path.is_file()), None)
    return Structures() if table is None else read_structures(table)


def _methods(
    names: list[str], run: DatasetRun, out_dir: Path, earlier: EarlierCases
) -> tuple[dict[str, Method], dict[str, str], dict[str, str], EarlierCases]:
    """Return the methods by name, and what is not here to run them: of methods with results, and of others.

    The former belong to the methods as well. Last come the earlier cases that were made by these methods.
    """
    from nio_pydra.comparison.cases import records_of
    from nio_pydra.comparison.scope import folder_of
    from nio_pydra.engines.methods import parse_method

    methods, absent, left_out = {}, {}, {}
    scans = {scan.name for scan in run.scans}
    parsed = {name: parse_method(name, require_installed=False) for name in names}
    earlier = earlier.kept_for(parsed)
    for name, method in parsed.items():
        not_installed = method.engine.available()
        reason = not_installed or _missing_weights(method)
        if reason and not (earlier.of(name) or scans & set(records_of(folder_of(out_dir, name), run.atlas.space))):
            if not not_installed:
                raise InputError(reason)
            left_out[name] = reason
            continue
        methods[name] = method
        if reason:
            absent[name] = reason
        if twin := next((other for other in methods if other != name and methods[other] == methods[name]), None):
            raise InputError(f"{name} and {twin} are the same method: leave one of them out of --engines.")
    if not methods:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "--engines names none."
        raise InputError(f"There is no method to compare: {why}")
    return methods, absent, left_out, earlier


def _missing_weights(method: Method) -> str | None:
    """Return why the weights of a method cannot be used; None if they can, or if it has none."""
    try:
        method.fingerprint()
    except InputError as error:
        return str(error)
    return None


def _reference(chosen: str | None, names: list[str]) -> str:
    if chosen is not None and chosen not in names:
        raise InputError(
            f"--reference {chosen} is none of the methods that can be run or shown here: choose one of "
            f"{', '.join(names)}."
        )
    return chosen or next((name for name in names if name.startswith("nio_m")), names[-1])


def _tested(chosen: str | None, reference: str, names: list[str]) -> list[str]:
    """Return the methods that are tested against the reference."""
    from nio_pydra.engines.methods import split_methods

    if chosen is None:
        return [name for name in names if name != reference and "?" not in name]
    tested = split_methods(chosen)
    if unknown := [name for name in tested if name not in names or name == reference]:
        raise InputError(
            f"--test {unknown[0]} is none of the methods that {reference} is compared with: choose others."
        )
    return tested
