"""Write a copy of a NIfTI image with an unambiguous orientation in its header."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio orient`."""
    parser.add_argument("image", type=Path, metavar="IN", help="NIfTI image (.nii or .nii.gz)")
    parser.add_argument("out", type=Path, metavar="OUT", help="the copy, with the same voxels")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--axes", type=_axes, metavar="XYZ",
        help="directions of the three voxel axes, as LAS or RPI: Left or Right, Anterior or Posterior, "
        "Superior or Inferior; the origin becomes the middle of the image",
    )  # fmt: skip
    choice.add_argument(
        "--keep", choices=("qform", "sform"), help="the form that is right; the other is replaced by it"
    )


def main(args: argparse.Namespace) -> int:
    """Write the copy; return the exit status."""
    from nio_pydra.spatial.reorient import reorient

    reorient(args.image, args.out, axes=args.axes, keep=args.keep)
    print(args.out)
    return 0


def _axes(text: str) -> str:
    axes = text.upper()
    if not re.fullmatch(r"[LRAPSI]{3}", axes) or any(len({*pair} & {*axes}) != 1 for pair in ("LR", "AP", "SI")):
        raise argparse.ArgumentTypeError(f"{text!r} is not three axes: expected one of L and R, of A and P, of S and I")
    return axes
