"""List the registration engines with their presets, and how to install missing ones."""

from __future__ import annotations

import argparse
import textwrap

from nio_pydra.engines.names import ENGINES, get_engine

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def main(args: argparse.Namespace) -> int:
    """Print the engines; return the exit status."""
    for name in ENGINES:
        engine = get_engine(name)
        print(name)
        for title, text in (
            ("what", engine.what),
            ("presets", ", ".join(engine.presets)),
            ("installed", engine.available() or "yes"),
            ("cite", engine.citation),
        ):
            print(textwrap.fill(f"{title:<11}{text}", 110, initial_indent="  ", subsequent_indent=" " * 13))
    return 0
