"""List the registration engines, their presets and settings, and how to install those that are missing."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from nio_pydra.engines.names import ENGINES, get_engine
from nio_pydra.system.settings import plain

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
            for setting, value in _flat(plain(engine.presets[preset])):
                print(f"    {setting} = {json.dumps(value)}")
    return 0


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by the names that `--settings` and `nio compare` take; parts that are left out are false."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, False if value is None else value
