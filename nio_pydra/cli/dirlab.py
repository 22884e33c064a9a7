"""Register the ten cases of DIR-Lab's 4DCT, and write the table of the NIO paper with these results beside its own."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nio_pydra.cli.options import add_runtime_options, positive
from nio_pydra.errors import ComputationError, InputError, ProgramError

if TYPE_CHECKING:
    from nio_pydra.comparison.dirlab import CaseFiles
    from nio_pydra.engines.contract import Runtime
    from nio_pydra.engines.methods import Method

__all__ = ["add_arguments", "main"]

log = logging.getLogger("nio_pydra")

METHODS = "lapirn:chest,io:chest,nio_m:chest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio dirlab`."""
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder with the unpacked data (Case1Pack, ...)")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument(
        "--cases", type=positive, nargs="+", action="extend", metavar="N", help="a part of the cases (default: all)"
    )
    parser.add_argument(
        "--engines", default=METHODS, metavar="METHOD[,METHOD]",
        help="methods as in `nio compare`: ENGINE[:PRESET][@WEIGHTS][?SETTING=VALUE] (default: %(default)s)",
    )  # fmt: skip
    add_runtime_options(parser)
    parser.add_argument(
        "--threads", type=positive, default=0, metavar="N", help="(default: OMP_NUM_THREADS, else all cores)"
    )


def main(args: argparse.Namespace) -> int:
    """Register the cases; return 1 if one failed."""
    from nio_pydra.comparison.dirlab import CASES, INITIAL, cases_table, find_case, summary
    from nio_pydra.comparison.scope import require_own_folders
    from nio_pydra.engines.contract import Runtime
    from nio_pydra.engines.methods import parse_method, split_methods
    from nio_pydra.profiles import LUNG
    from nio_pydra.system.files import atomic_path, write_text
    from nio_pydra.system.places import require_writable

    if not args.dir.is_dir():
        raise InputError(
            f"{args.dir}: no such folder. Give the one with the unpacked data of DIR-Lab (Case1Pack, ...)."
        )
    numbers = sorted(set(args.cases or CASES))
    if unknown := [number for number in numbers if number not in CASES]:
        raise InputError(f"DIR-Lab has no case {unknown[0]}: expected numbers from {min(CASES)} to {max(CASES)}.")
    methods = {name: parse_method(name, profile=LUNG) for name in split_methods(args.engines)}
    if not methods:
        raise InputError("--engines names no method.")
    require_own_folders(args.out, list(methods))
    require_writable(args.out, "output folder")
    runtime = Runtime(device=args.device, threads=args.threads, seed=args.random_seed, precision=args.precision)
    records: dict[tuple[int, str], dict[str, Any]] = {}
    failures: dict[tuple[int, str], str] = {}
    for number in numbers:
        try:
            files = find_case(args.dir, number)
            if files is None and args.cases:
                raise InputError(f"{args.dir} has no image of case {number} (case{number}_T00*.img).")
        except InputError as error:
            failures[number, INITIAL] = str(error)
            log.error("%s", error)
            continue
        if files is None:
            log.warning("%s has no image of case %d, which is left out.", args.dir, number)
        else:
            _register(files, number, methods, args.out, runtime, records, failures)
            write_text(summary(records, failures), args.out / "summary.md")
    if not records:
        reason = next(iter(failures.values()), "")
        raise InputError(reason or f"{args.dir} has no image of a case (case1_T00*.img): expected the unpacked data.")
    write_text(summary(records, failures), args.out / "summary.md")
    with atomic_path(args.out / "cases.tsv") as temporary:
        cases_table(records).to_csv(temporary, sep="\t", index=False, float_format="%.4f", na_rep="n/a")
    print((args.out / "summary.md").read_text())
    print(args.out)
    return 1 if failures else 0


def _register(
    files: CaseFiles,
    number: int,
    methods: dict[str, Method],
    out: Path,
    runtime: Runtime,
    records: dict[tuple[int, str], dict[str, Any]],
    failures: dict[tuple[int, str], str],
) -> None:
    """Register one case by all methods, and note records and failures."""
    import numpy as np

    from nio_pydra.comparison.dirlab import CASES, INITIAL, read_phase
    from nio_pydra.comparison.landmark_pairs import LandmarkPair, initial_record, register_landmarks
    from nio_pydra.comparison.scope import folder_of
    from nio_pydra.engines.contract import ScanFiles
    from nio_pydra.profiles import PROFILES
    from nio_pydra.spatial.images import save_image
    from nio_pydra.spatial.landmarks import read_pair
    from nio_pydra.system.scratch import scratch_folder

    with scratch_folder(out) as work:
        try:
            images = [read_phase(path, CASES[number]) for path in files.images]
            points = read_pair(files.landmarks[0], images[0], files.landmarks[1], images[1])
        except InputError as error:
            failures[number, INITIAL] = str(error)
            log.error("%s", error)
            return
        scans = [
            ScanFiles(save_image(image.dataobj, image.affine, work / f"case{number}_{phase}.nii", np.int16))
            for image, phase in zip(images, ("T00", "T50"), strict=True)
        ]
        pair = LandmarkPair(scans[0], scans[1], points, PROFILES["lung"])
        records[number, INITIAL] = initial_record(pair)
        for name, method in methods.items():
            folder = folder_of(out / f"case_{number:02}", name)
            try:
                records[number, name] = register_landmarks(pair, folder, method, runtime, affine=False)
            except (InputError, ProgramError, ComputationError) as error:
                failures[number, name] = str(error)
                log.error("case %d, %s: %s", number, name, error)
                continue
            found, before = (records[number, own]["landmarks"] for own in (name, INITIAL))
            if found["mean"] > before["mean"]:
                log.warning(
                    "case %d, %s: the landmarks are farther apart after the registration (%.2f mm) than before "
                    "(%.2f mm). Are two files swapped?", number, name, found["mean"], before["mean"],
                )  # fmt: skip
            print(f"case {number}, {name}: {found['mean']:.2f} ± {found['sd']:.2f} mm", flush=True)
