"""Train a network on images generated from label maps; run again to go on where it stopped."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from nio_pydra.errors import InputError

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio train`."""
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        metavar="DIR",
        help="label maps (*.nii.gz), FreeSurfer numbers, 1 mm",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="takes weights.safetensors, the checkpoint and the log",
    )
    parser.add_argument(
        "--stage", action="append", default=[], metavar="LEVEL:STEPS:RATE:CROP",
        help="part of the schedule, may be repeated (default: 1:1500:0.001:0 2:1500:0.0005:48 3:400:0.0002:64)",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="FILE", help="start from these (default: from nothing)")
    parser.add_argument(
        "--training-data",
        default="images generated from label maps",
        metavar="TEXT",
        help="for the metadata of the weights",
    )
    parser.add_argument("--licence", default="unspecified", metavar="TEXT", help="of the weights, for their metadata")
    parser.add_argument(
        "--lambda",
        dest="smoothness",
        type=float,
        default=0.4,
        metavar="L",
        help="weight of smoothness (default: %(default)s)",
    )
    parser.add_argument(
        "--held-out", type=int, default=3, metavar="N", help="maps kept for validation (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0 for all cores (default)")
    parser.add_argument("--random-seed", type=int, default=0, metavar="N", help="(default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """Run or resume a training; return the exit status."""
    stages = [_numbers(text) for text in args.stage]

    import torch

    from nio_pydra.bids.description import require_writable
    from nio_pydra.optimize.resources import keep_freed_memory
    from nio_pydra.spatial.kernels import set_kernel_threads
    from nio_pydra.training.loop import train
    from nio_pydra.training.maps import prepare_label_maps
    from nio_pydra.training.settings import Stage, TrainingSettings

    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
        set_kernel_threads(args.threads)
    try:
        settings = TrainingSettings(
            smoothness=args.smoothness,
            held_out=args.held_out,
            seed=args.random_seed,
            training_data=args.training_data,
            licence=args.licence,
        )
        if stages:
            settings = replace(settings, stages=tuple(Stage(int(a), int(b), c, int(d)) for a, b, c, d in stages))
    except ValueError as error:
        raise InputError(f"These settings cannot be trained: {error}.") from None
    require_writable(args.out, "output folder")
    maps = prepare_label_maps(args.labels, args.out / "maps")
    with (args.out / "train.log").open("a", buffering=1) as file:

        def log(line: str) -> None:
            text = f"{time.strftime('%H:%M:%S')} {line}"
            print(text, flush=True)
            file.write(text + "\n")

        train(settings, maps, args.out, initial=args.weights, log=log)
    print(args.out / "weights.safetensors")
    return 0


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(":"))
        if len(values) != 4:
            raise ValueError
    except ValueError:
        raise InputError(f"--stage {text}: expected LEVEL:STEPS:RATE:CROP, as 2:1500:0.0005:48.") from None
    return values
