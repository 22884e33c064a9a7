"""Register one image to another, and write both transforms, the warped image, the labels and a record."""

from __future__ import annotations

import argparse
from pathlib import Path

from nio_pydra.cli.options import add_engine_options, add_jacobian_option, method_of, positive
from nio_pydra.profiles import PROFILES

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio register`."""
    images = parser.add_argument_group("images")
    images.add_argument("--fixed", type=Path, required=True, metavar="F", help="image to align to (atlas, first phase)")
    images.add_argument("--moving", type=Path, required=True, metavar="M", help="image to be aligned")
    images.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    images.add_argument("--fixed-labels", type=Path, metavar="L", help="for the Dice overlap with --moving-labels")
    images.add_argument("--moving-labels", type=Path, metavar="L", help="to be resampled onto the fixed image")
    images.add_argument("--fixed-mask", type=Path, metavar="MASK", help="mask of brain or lungs (default: made)")
    images.add_argument("--moving-mask", type=Path, metavar="MASK", help="mask of brain or lungs (default: made)")
    images.add_argument("--lesion-mask", type=Path, metavar="MASK", help="region of the moving image to leave out")
    images.add_argument("--skull-stripped", action="store_true", help="both images are zero outside the brain")
    images.add_argument(
        "--fixed-landmarks", type=Path, metavar="POINTS",
        help="points of the fixed image, for their distances to --moving-landmarks before and after (docs/chest.md)",
    )  # fmt: skip
    images.add_argument("--moving-landmarks", type=Path, metavar="POINTS", help="the same points of the moving image")
    add_engine_options(parser, "the first; chest for lungs")
    add_jacobian_option(parser)
    parser.add_argument(
        "--profile", dest="profile_name", choices=PROFILES, default="brain",
        help="what the images show; lung: CT of one patient's chest (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--affine", choices=("ants", "none"), default="ants",
        help="alignment before the registration; none: the images lie in one frame already (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=positive, default=0, metavar="N", help="(default: OMP_NUM_THREADS, else all cores)"
    )


def main(args: argparse.Namespace) -> int:
    """Register one pair; return the exit status."""
    from nio_pydra.system.places import require_writable

    require_writable(args.out, "output folder")
    args.profile = PROFILES[args.profile_name]
    method = method_of(args)
    from nio_pydra.engines.chain import register_pair
    from nio_pydra.engines.contract import Runtime, ScanFiles

    record = register_pair(
        ScanFiles(
            args.fixed, args.fixed_mask, args.fixed_labels,
            skull_stripped=args.skull_stripped, landmarks=args.fixed_landmarks,
        ),
        ScanFiles(
            args.moving, args.moving_mask, args.moving_labels, args.lesion_mask, args.skull_stripped,
            args.moving_landmarks,
        ),
        args.out,
        method,
        jacobian=args.output_jacobian,
        profile=args.profile,
        runtime=Runtime(device=args.device, threads=args.threads, seed=args.random_seed, precision=args.precision),
        affine=args.affine == "ants",
    )  # fmt: skip
    overlap = f", mean Dice {record['dice']['mean']:.3f}" if record.get("dice") else ""
    print(
        f"{args.moving} to {args.fixed} by {record['engine']} ({record['preset']}): "
        f"similarity {record['similarity']['before']:.3f} -> {record['similarity']['after']:.3f}{overlap}, "
        f"folds {record['fold_percent']:.2f} %, {record['seconds']['registration']:.0f} s"
    )
    if "tre" in record:
        means = {name: f"{found['mean']:.2f}" for name, found in record["tre"].items()}
        after = record["tre"]["after"]
        print(
            f"{after['count']} landmarks, mean distance in mm: {means['before']} -> {means['affine']} (affine) -> "
            f"{means['after']}, median {after['median']:.2f}, 95 % below {after['p95']:.2f}"
        )
    print(args.out)
    return 0
