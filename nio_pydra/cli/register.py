"""Register one image to another, and write both transforms, the warped image, the labels and a record."""

from __future__ import annotations

import argparse
from pathlib import Path

from nio_pydra.cli.options import add_engine_options, add_jacobian_option, method_of, positive

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio register`."""
    images = parser.add_argument_group("images")
    images.add_argument("--fixed", type=Path, required=True, metavar="F", help="image to align to (the atlas)")
    images.add_argument("--moving", type=Path, required=True, metavar="M", help="image to be aligned")
    images.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    images.add_argument("--fixed-labels", type=Path, metavar="L", help="for the Dice overlap with --moving-labels")
    images.add_argument("--moving-labels", type=Path, metavar="L", help="to be resampled onto the fixed image")
    images.add_argument("--fixed-mask", type=Path, metavar="MASK", help="brain mask (default: made)")
    images.add_argument("--moving-mask", type=Path, metavar="MASK", help="brain mask (default: made)")
    images.add_argument("--lesion-mask", type=Path, metavar="MASK", help="region of the moving image to leave out")
    images.add_argument("--skull-stripped", action="store_true", help="both images are zero outside the brain")
    add_engine_options(parser)
    add_jacobian_option(parser)
    parser.add_argument(
        "--threads", type=positive, default=0, metavar="N", help="(default: OMP_NUM_THREADS, else all cores)"
    )


def main(args: argparse.Namespace) -> int:
    """Register one pair; return the exit status."""
    from nio_pydra.bids.description import require_writable

    require_writable(args.out, "output folder")
    method = method_of(args)
    from nio_pydra.engines.chain import register_pair
    from nio_pydra.engines.contract import Runtime, ScanFiles

    record = register_pair(
        ScanFiles(args.fixed, args.fixed_mask, args.fixed_labels, skull_stripped=args.skull_stripped),
        ScanFiles(args.moving, args.moving_mask, args.moving_labels, args.lesion_mask, args.skull_stripped),
        args.out,
        method,
        jacobian=args.output_jacobian,
        profile=args.profile,
        runtime=Runtime(device=args.device, threads=args.threads, seed=args.random_seed, precision=args.precision),
    )
    overlap = f", mean Dice {record['dice']['mean']:.3f}" if record.get("dice") else ""
    print(
        f"{args.moving} to {args.fixed} by {record['engine']} ({record['preset']}): "
        f"similarity {record['similarity']['before']:.3f} -> {record['similarity']['after']:.3f}{overlap}, "
        f"folds {record['fold_percent']:.2f} %, {record['seconds']['registration']:.0f} s"
    )
    print(args.out)
    return 0
