"""`nio`: registration of one pair, weights, the demo, training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from nio_pydra.cli.errors import exit_status
from nio_pydra.cli.version import ShowVersion

__all__ = ["main"]

COMMANDS = {
    "register": "register one image to another",
    "compare": "compare methods on the scans of a BIDS dataset with labels",
    "dirlab": "register the chest CTs of DIR-Lab, and make the table of the NIO paper",
    "fmriprep": "run fMRIPrep with a registration by nio_pydra",
    "engines": "list the registration engines, and how to install missing ones",
    "orient": "write a copy of an image with an unambiguous orientation in its header",
    "weights": "convert or show network weights",
    "demo": "simulate subjects, register them and compare with the truth",
    "train": "train network weights",
    "adapt": "adapt network weights to an atlas and a dataset",
}
"""Help by command. Each command is a module of this package with `add_arguments(parser)` and `main(args)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `nio`; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="nio", description="Registration of brain scans by Neural Instance Optimization."
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words = sys.argv[1:] if argv is None else list(argv)
    chosen = next((word for word in words if word in COMMANDS), None)
    for name, text in COMMANDS.items():
        subparser = commands.add_parser(name, help=text)
        if name == chosen:  # importing the others takes time
            module = import_module(f"nio_pydra.cli.{name}")
            subparser.description = module.__doc__
            module.add_arguments(subparser)
    arguments = parser.parse_args(words)
    folders = [getattr(arguments, name) for name in ("out", "out_dir", "work_dir") if hasattr(arguments, name)]
    return exit_status(f"nio {arguments.command}", lambda: module.main(arguments), folders)
