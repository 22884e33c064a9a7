"""`nio`: one pair of images, weights, the demo, training."""

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
    "engines": "list the registration engines, their presets, and how to install them",
    "orient": "write a copy of an image with one clear orientation in its header",
    "weights": "convert or show network weights",
    "demo": "simulate three subjects, register them and show what came out",
    "train": "train network weights",
}
"""Each is a module of this package with `add_arguments(parser)` and `main(args)`."""


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
        if name == chosen:  # the others need not be imported
            module = import_module(f"nio_pydra.cli.{name}")
            subparser.description = module.__doc__
            module.add_arguments(subparser)
    arguments = parser.parse_args(words)
    folders = [arguments.out] if hasattr(arguments, "out") else []
    return exit_status(f"nio {arguments.command}", lambda: module.main(arguments), folders)
