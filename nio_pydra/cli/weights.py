"""Convert a published checkpoint, or show what a weights file says about itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nio_pydra.errors import InputError

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio weights`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    convert = actions.add_parser("convert", help="from a checkpoint published by a network's authors to safetensors")
    convert.add_argument("source", type=Path, metavar="A.pth", help="of LapIRN (.pth) or MultiPropReg (.ckpt)")
    convert.add_argument("target", type=Path, metavar="B.safetensors")
    info = actions.add_parser("info", help="print the metadata as JSON")
    info.add_argument("file", type=Path, metavar="FILE")


def main(args: argparse.Namespace) -> int:
    """Convert or show; return the exit status."""
    from nio_pydra.networks.checkpoints import convert, read_metadata

    if args.action == "convert":
        if args.target.exists():
            raise InputError(f"{args.target} exists: choose another name.")
        convert(args.source, args.target)
        print(args.target)
    else:
        print(json.dumps(read_metadata(args.file), indent=2))
    return 0
