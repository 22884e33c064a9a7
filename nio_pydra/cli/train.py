"""Train a network, on images generated from label maps or on real scans; run again to go on where it stopped."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.cli.options import named_datasets, named_path, positive, seed
from nio_pydra.errors import InputError

if TYPE_CHECKING:
    from nio_pydra.training.pairs import ImageSource
    from nio_pydra.training.settings import TrainingSettings

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio train`."""
    data = parser.add_argument_group("what to train on, one of")
    choice = data.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--labels", type=Path, metavar="DIR", help="images generated from these label maps (*.nii.gz, FreeSurfer's "
        "numbers, 1 mm)",
    )  # fmt: skip
    choice.add_argument("--bids", type=Path, metavar="DIR", help="the T1w scans of a BIDS dataset")
    choice.add_argument(
        "--scans", type=Path, metavar="TSV", help="a table of scans, with a column image and perhaps mask and labels"
    )
    scans = parser.add_argument_group("of real scans")
    scans.add_argument(
        "-d", "--derivatives", action="append", type=named_path, default=[], metavar="NAME=PATH",
        help="derivatives of the BIDS dataset, for brain masks and labels",
    )  # fmt: skip
    scans.add_argument("--labels-desc", metavar="DESC", help="their desc-DESC_dseg, for validation and label_weight")
    scans.add_argument(
        "--participant-label", nargs="+", action="extend", default=[], metavar="LABEL", help="(default: all)"
    )
    scans.add_argument("--skull-stripped", action="store_true", help="all scans show brains only")
    run = parser.add_argument_group("the run")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="takes weights, checkpoint, curves and log")
    run.add_argument("--weights", type=Path, metavar="FILE", help="start from these (default: from nothing)")
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    run.add_argument(
        "--threads", type=positive, default=0, metavar="N", help="(default: OMP_NUM_THREADS, else all cores)"
    )
    settings = parser.add_argument_group("settings")
    settings.add_argument("--architecture", choices=("lapirn", "ulae"), help="(default: lapirn, or as in --settings)")
    settings.add_argument(
        "--settings", type=Path, metavar="JSON",
        help="as a run keeps them in settings.json; what it leaves out keeps its default, the options below go first",
    )  # fmt: skip
    settings.add_argument(
        "--stage", action="append", default=[], metavar="LEVEL:STEPS:RATE:CROP",
        help="part of the schedule, may be repeated (default: 1:1500:0.001:0 2:1500:0.0005:48 3:400:0.0002:64; "
        "for ulae, which has no levels, 3:20000:0.0001:0)",
    )  # fmt: skip
    settings.add_argument("--lambda", dest="smoothness", type=float, metavar="L", help="weight of smoothness")
    settings.add_argument("--held-out", type=int, metavar="N", help="brains kept for validation")
    settings.add_argument("--random-seed", dest="seed", type=seed, metavar="N")
    settings.add_argument("--training-data", metavar="TEXT", help="for the metadata of the weights")
    settings.add_argument("--licence", metavar="TEXT", help="of the weights, for their metadata")


def main(args: argparse.Namespace) -> int:
    """Run or resume a training; return the exit status."""
    _refuse_unused(args)
    settings = _settings(args)
    _refuse_loss(args)

    from tqdm import tqdm

    from nio_pydra.engines.contract import Runtime
    from nio_pydra.engines.devices import choose_device
    from nio_pydra.networks.checkpoints import load_network
    from nio_pydra.optimize.resources import keep_freed_memory, limit_threads
    from nio_pydra.system.places import require_writable
    from nio_pydra.training.loop import train

    if args.weights is not None:
        load_network(args.weights)  # so that an error comes before the data are prepared
    runtime = Runtime(device=args.device, threads=args.threads, seed=settings.seed, progress=False)
    device = choose_device(runtime)
    require_writable(args.out, "output folder")
    keep_freed_memory()
    limit_threads(runtime.thread_count)

    def log(line: str) -> None:
        text = f"{time.strftime('%H:%M:%S')} {line}"
        tqdm.write(text)  # around a bar, if there is one
        with (args.out / "train.log").open("a") as file:  # not before the first line
            file.write(text + "\n")

    source = _source(args, settings, runtime, log)
    train(settings, source, args.out, initial=args.weights, device=device, log=log)
    print(args.out / "weights.safetensors")
    return 0


def _refuse_unused(args: argparse.Namespace) -> None:
    """Raise `InputError` if an option would have no effect."""
    given = {
        "--derivatives": args.derivatives,
        "--labels-desc": args.labels_desc,
        "--participant-label": args.participant_label,
    }
    unused = [name for name, value in given.items() if value and args.bids is None]
    if args.labels is not None and args.skull_stripped:
        unused.append("--skull-stripped")
    if unused:
        source = "--labels" if args.labels is not None else "--scans"
        raise InputError(f"{', '.join(unused)} has no effect with {source}: leave it out, or train on --bids.")


def _refuse_loss(args: argparse.Namespace) -> None:
    """Raise `InputError` if an input, or a file that this command did not write, would be replaced."""
    from nio_pydra.bids.ownership import refuse_inputs_as_output
    from nio_pydra.system.places import refuse_same_file

    folders = {"--labels": args.labels, "--bids": args.bids}
    folders |= {f"-d {name}={path}": path for name, path in named_datasets(args.derivatives).items()}
    refuse_inputs_as_output(args.out, "output folder", {name: path for name, path in folders.items() if path})
    written = [args.out / name for name in ("weights.safetensors", "checkpoint.pt", "train.log")]
    refuse_same_file(written, [args.weights, args.settings, args.scans])
    if not (args.out / "origin.json").is_file():
        for path in written[:2]:
            if path.exists():
                raise InputError(f"{path} is not of an earlier run of nio train: choose another output folder.")


def _settings(args: argparse.Namespace) -> TrainingSettings:
    from nio_pydra.networks import LapIRN
    from nio_pydra.training.settings import Stage, TrainingSettings, default_settings, read_settings

    if args.settings is not None:
        settings = read_settings(args.settings, args.architecture)
    else:
        settings = default_settings(args.architecture or LapIRN.architecture)
    names = ("smoothness", "held_out", "seed", "training_data", "licence")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    parts = [_numbers(text) for text in args.stage]
    try:
        if parts:
            joint = settings.architecture != LapIRN.architecture  # others have no levels below to keep as they are
            given["stages"] = tuple(Stage(*numbers, joint=joint) for numbers in parts)
        if settings.training_data == TrainingSettings.training_data:
            given.setdefault(
                "training_data", "images generated from label maps" if args.labels is not None else "real scans"
            )
        return replace(settings, **given)
    except ValueError as error:
        raise InputError(f"These settings cannot be trained: {error}.") from None


def _source(args: argparse.Namespace, settings: TrainingSettings, runtime, log: Callable[[str], None]) -> ImageSource:  # type: ignore[no-untyped-def]
    """Prepare the data, once."""
    from nio_pydra.training.pairs import RealImages, SyntheticImages, require_enough

    if args.labels is not None:
        from nio_pydra.training.maps import prepare_label_maps

        files = prepare_label_maps(args.labels, args.out / "maps", log)
        return SyntheticImages(files, settings.synthesis, settings.held_out)
    from nio_pydra.engines.contract import ScanFiles
    from nio_pydra.training.scans import prepare_scans, read_scan_list

    if args.scans is not None:
        scans = read_scan_list(args.scans, skull_stripped=args.skull_stripped)
    else:
        from nio_pydra.bids.inputs import find_scans

        found = find_scans(
            args.bids,
            participants=args.participant_label,
            derivatives=named_datasets(args.derivatives),
            labels_desc=args.labels_desc,
        )
        first: dict[str, ScanFiles] = {}
        for scan in found:
            if scan.problem:
                log(f"left out {scan.name}: {scan.problem}")
                continue
            skull_stripped = args.skull_stripped or scan.skull_stripped
            files = ScanFiles(scan.image, scan.mask, scan.labels, skull_stripped=skull_stripped)
            first.setdefault(scan.entities["subject"], files)
        scans = list(first.values())
        if len(scans) < len(found):
            # A participant must not be paired with itself, nor be in both training and validation.
            log(f"of {len(found)} scans the first of each of {len(scans)} participants is taken")
    require_enough(len(scans), settings.held_out)
    if settings.label_weight and not any(scan.labels for scan in scans):
        raise InputError(
            f"label_weight is {settings.label_weight}, but no scan has labels: give --labels-desc and their "
            "--derivatives, or a column labels."
        )
    return RealImages(prepare_scans(scans, args.out / "scans", runtime, log), settings.synthesis, settings.held_out)


def _numbers(text: str) -> tuple[int, int, float, int]:
    try:
        level, steps, rate, crop = text.split(":")
        return int(level), int(steps), float(rate), int(crop)
    except ValueError:
        raise InputError(f"--stage {text}: expected LEVEL:STEPS:RATE:CROP, as 2:1500:0.0005:48.") from None
