"""Run fMRIPrep, with the registration to templates by nio_pydra in the place of ANTs.

The arguments of fMRIPrep come after two dashes: nio fmriprep --preset fast -- DATA OUT participant.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib.metadata import version
from typing import Any

from nio_pydra.cli.options import add_engine_options, method_of
from nio_pydra.errors import InputError

__all__ = ["add_arguments", "main"]

ORIGINAL = "build_workflow_without_nio"
"""Name under which fMRIPrep's function is kept in its module."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio fmriprep`."""
    add_engine_options(
        parser, "precise, or draft or fast with --sloppy of fMRIPrep; the first of an engine without them"
    )
    parser.add_argument("arguments", nargs="+", metavar="-- ARGUMENT", help="arguments of fMRIPrep, after two dashes")


def main(args: argparse.Namespace) -> int:
    """Run fMRIPrep in this process, which it ends itself."""
    from nio_pydra.engines.methods import read_settings_file

    try:
        from fmriprep.cli import run, workflow

        from nio_pydra.workflows import smriprep  # noqa: F401
    except ImportError as error:
        raise InputError(f"fMRIPrep 25.1 or newer is needed ({error}): install it beside nio_pydra.") from None
    code = run.main.__code__
    if "build_workflow" not in {*code.co_varnames, *code.co_cellvars}:
        # It does not import the function when it runs, so the replacement below would go unnoticed.
        raise InputError(
            f"fMRIPrep {version('fmriprep')} builds its workflow in another way than 25.1 and 25.2, so the "
            "registration cannot be replaced: install one of these, or a newer nio_pydra."
        )
    method_of(args)  # refuses what cannot be used, before the work
    preset, settings = args.preset, None
    if args.settings is not None:
        preset, settings = read_settings_file(args.settings, preset)
    options = {
        "engine": args.engine, "preset": preset, "settings": settings,
        "weights": None if args.weights is None else args.weights.absolute(), "device": args.device,
        "precision": args.precision, "random_seed": args.random_seed,
    }  # fmt: skip
    # fMRIPrep calls this function in a process of its own, which gets it by name with these options.
    setattr(workflow, ORIGINAL, workflow.build_workflow)
    workflow.build_workflow = partial(_build_workflow, options)
    sys.argv = ["fmriprep", *args.arguments]
    run.main()
    return 0


def _build_workflow(options: dict[str, Any], config_file: str, retval: Any) -> Any:
    """Build fMRIPrep's workflow as fMRIPrep does, and replace its registration before its programs are looked for."""
    from fmriprep import config
    from fmriprep.cli import workflow
    from fmriprep.workflows import base

    from nio_pydra.workflows.smriprep import use_nio

    build_all = base.init_fmriprep_wf

    def build_all_with_nio() -> Any:
        built = build_all()
        replaced = use_nio(built, **options)
        if replaced:
            config.loggers.workflow.log(25, "nio_pydra registers to %s in the place of ANTs.", ", ".join(replaced))
        else:
            config.loggers.workflow.warning(
                "nio_pydra registers nothing: fMRIPrep plans no registration to a template, because its derivatives "
                "(-d) have the transforms, or because no output space is volumetric."
            )
        return built

    base.init_fmriprep_wf = build_all_with_nio
    try:
        return getattr(workflow, ORIGINAL, workflow.build_workflow)(config_file, retval)
    finally:
        base.init_fmriprep_wf = build_all
