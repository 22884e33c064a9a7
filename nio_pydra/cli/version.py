"""The option `--version`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["ShowVersion"]


class ShowVersion(argparse.Action):
    """Print the version and end. It is found only then, because git must be run."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show program's version number and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it."""
        from nio_pydra.version import version

        print(f"nio_pydra {version()}")
        parser.exit()
