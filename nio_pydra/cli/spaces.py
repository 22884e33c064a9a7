"""Options that name the atlases of a run, and the atlases that they name."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.errors import InputError
from nio_pydra.profiles import Profile

if TYPE_CHECKING:
    from nio_pydra.bids.atlas import Atlas

__all__ = ["add_space_options", "atlases_of", "check_space_options"]

log = logging.getLogger("nio_pydra")

NOT_ATLASES = frozenset(("anat", "T1w", "T2w", "func", "bold", "boldref", "sbref", "run", "fsnative", "fsLR", "onavg"))
"""Spaces of fMRIPrep that are no atlas for volumes; all names that begin with fsaverage as well."""


def add_space_options(parser: argparse.ArgumentParser) -> None:
    """Add --output-spaces and the options for atlases from files."""
    group = parser.add_argument_group("atlases")
    group.add_argument(
        "--output-spaces", nargs="+", action="extend", default=[], metavar="SPACE",
        help="TemplateFlow templates to align the scans to, as MNI152NLin2009cAsym MNIPediatricAsym:cohort-2:res-1; "
        "MNIPediatricAsym+2 is the same cohort, and without res- resolution 1 is used",
    )  # fmt: skip
    group.add_argument(
        "--template", action="append", dest="output_spaces", metavar="SPACE", help="one template; can be repeated"
    )
    group.add_argument("--atlas", type=Path, action="append", default=[], metavar="IMAGE", help="image file")
    group.add_argument(
        "--atlas-name", action="append", default=[], metavar="NAME",
        help="name of --atlas in BIDS file names: letters and digits, with a cohort as NAME+C",
    )  # fmt: skip
    group.add_argument(
        "--atlas-labels", type=Path, action="append", default=[], metavar="DSEG", help="label image on the atlas's grid"
    )
    group.add_argument(
        "--atlas-mask", type=Path, action="append", default=[], metavar="MASK", help="brain mask on the atlas's grid"
    )


def check_space_options(options: argparse.Namespace) -> None:
    """Raise `InputError` if the options do not name atlases, or it is not clear which file belongs to which."""
    images, names, spaces = options.atlas, options.atlas_name, options.output_spaces
    if names and not images:
        raise InputError(
            f"--atlas-name {names[0]} names no image: give it with --atlas IMAGE. A template (--output-spaces) has its "
            "own name."
        )
    if images and not names:
        raise InputError(f"--atlas {images[0]} has no name for BIDS file names: give --atlas-name NAME as well.")
    if not (images or spaces):
        raise InputError("No atlas was chosen: give --output-spaces NAME, or --atlas IMAGE with --atlas-name NAME.")
    if not (images or _templates(spaces)):
        raise InputError(f"--output-spaces {' '.join(spaces)} names no atlas: add a template, as MNI152NLin2009cAsym.")
    if len(names) != len(images):
        raise InputError(
            f"--atlas is given {len(images)} times and --atlas-name {len(names)} times: give each image its name, in "
            "the same order."
        )
    wanted = len(images) or len(_templates(spaces))
    for option in ("labels", "mask"):
        given = getattr(options, f"atlas_{option}")
        if given and len(given) != wanted:
            raise InputError(
                f"--atlas-{option} is given {len(given)} times for {wanted} atlases: give one file for each of them, "
                "in the same order, or run them one by one."
            )


def atlases_of(options: argparse.Namespace, profile: Profile) -> list[Atlas]:
    """Return the atlases that the options name: first those from files, then the templates.

    Label images and masks belong to ``--atlas`` where there is one, otherwise to the templates, in the same order.

    Raises
    ------
    InputError
        If an atlas cannot be used, or two of them would get the same names of transforms.
    """
    from nio_pydra.bids.atlas import atlas_from_files
    from nio_pydra.bids.templates import atlas_from_template

    for name in options.atlas_name:
        if _is_other_space(re.split("[+:]", name)[0], profile):
            raise InputError(
                f"--atlas-name {name} cannot be told from the scan or another space of it in names of transforms: "
                "choose another name."
            )
    specs = _templates(options.output_spaces)
    if others := [space for space in options.output_spaces if space not in specs]:
        log.warning("%s: no atlas to align scans to, left out of --output-spaces", ", ".join(others))
    labels, masks = _each(options.atlas_labels), _each(options.atlas_mask)
    found = [
        atlas_from_files(image, name, labels=next(labels), mask=next(masks), skull_stripped=options.skull_stripped)
        for image, name in zip(options.atlas, options.atlas_name, strict=True)
    ]
    found += [atlas_from_template(spec, labels=next(labels), mask=next(masks), profile=profile) for spec in specs]
    by_label: dict[str, Atlas] = {}
    for atlas in found:
        if (twin := by_label.setdefault(atlas.label, atlas)) != atlas:
            what = (
                f"two resolutions of {atlas.label}"
                if twin.resolution != atlas.resolution
                else f"{twin.image} and {atlas.image} as {atlas.label}"
            )
            raise InputError(
                f"This run was given {what}, and names of transforms would not tell them apart: run them one by one, "
                "each with an output folder of its own."
            )
    return list(by_label.values())


def _templates(spaces: Sequence[str]) -> list[str]:
    """Return the templates among output spaces of fMRIPrep, each once."""
    return [
        space
        for space in dict.fromkeys(spaces)
        if (name := space.split(":")[0]) not in NOT_ATLASES and not name.startswith("fsaverage")
    ]


def _is_other_space(name: str, profile: Profile) -> bool:
    """Return whether a name, in small or capital letters, is that of the scan or of a space that is no atlas."""
    others = {other.lower() for other in (*NOT_ATLASES, "scanner", profile.suffix)}
    return name.lower() in others or name.lower().startswith("fsaverage")


def _each(files: Sequence[Path]) -> Iterator[Path | None]:
    """Return an iterator over the files, and then over nothing without end."""
    return chain(files, repeat(None))
