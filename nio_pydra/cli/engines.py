"""List the registration engines, their presets and settings, and how to install those that are missing."""

from __future__ import annotations

import argparse
import json
import textwrap

from nio_pydra.engines.names import ENGINES, get_engine
from nio_pydra.system.settings import flat, plain

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the names of engines."""
    parser.add_argument("names", nargs="*", metavar="ENGINE", help="show the settings of these engines as well")


def main(args: argparse.Namespace) -> int:
    """Print the engines; return the exit status."""
    for name in args.names or ENGINES:
        engine = get_engine(name)
        print(name)
        missing = engine.available()
        for title, text in (
            ("what", engine.what),
            ("presets", ", ".join(engine.presets)),
            ("installed", f"no: {missing}" if missing else "yes"),
            ("cite", engine.citation),
        ):
            print(textwrap.fill(f"{title:<11}{text}", 110, initial_indent="  ", subsequent_indent=" " * 13))
        for preset in engine.presets if args.names else ():
            print(f"  settings of {preset}")
            for setting, value in flat(plain(engine.presets[preset])):
                # As `--settings` and `nio compare` take it: parts that are left out are false.
                print(f"    {setting} = {json.dumps(False if value is None else value)}")
    return 0
