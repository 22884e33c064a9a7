"""Templates from TemplateFlow, with their cohorts and resolutions."""

from __future__ import annotations

import importlib.resources
import logging
import os
import re
import zipfile
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from nio_pydra.bids.atlas import Atlas, check_atlas
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.files import one_at_a_time, read_json

__all__ = ["atlas_from_template", "template_references"]

log = logging.getLogger("nio_pydra")

ARCHIVE = "https://templateflow.s3.amazonaws.com"
Variant = tuple[int | None, int | None]
"""Cohort and resolution of an image. None: not in its name."""


def atlas_from_template(
    spec: str, *, labels: Path | None = None, mask: Path | None = None, profile: Profile = BRAIN
) -> Atlas:
    """Return an atlas that is a template of TemplateFlow.

    Parameters
    ----------
    spec : str
        TemplateFlow identifier, with or without cohort and resolution: ``MNI152NLin2009cAsym``,
        ``MNIInfant:cohort-1``, ``MNIInfant+1``, ``MNIInfant:cohort-1:res-2``. Default: resolution 1, which is mostly
        1 mm.
    labels : Path, optional
        Label image on the template's grid.
    mask : Path, optional
        Mask of the object on the template's grid. Default: the template's own mask.
    profile : Profile
        What is registered.

    Raises
    ------
    InputError
        If the template does not exist, has no such image, or cannot be downloaded.
    """
    name, asked = _parsed(spec)
    suffix = profile.suffix
    api, home = _templateflow()
    try:
        at_hand = _variants(api.ls(name, suffix=suffix, desc=None, extension=".nii.gz"), name, suffix)
        templates = set(api.templates())
    except Exception as error:  # TemplateFlow does not say which errors its index raises
        raise InputError(f"TEMPLATEFLOW_HOME {home} cannot be read ({error}): repair it, or use another one.") from None
    packed = _packed_files()
    known = at_hand | _variants(packed, name, suffix)
    all_templates = templates | {
        path.parts[0].removeprefix("tpl-") for path in packed if path.parts[0].startswith("tpl-")
    }
    if name not in all_templates:
        raise InputError(f"TemplateFlow has no template {name}: it has {', '.join(sorted(all_templates))}.")
    cohort, resolution = _chosen(name, asked, known, suffix)
    if (cohort, resolution) not in at_hand:
        available = ", ".join(sorted(templates)) or "no template"
        raise InputError(
            f"TemplateFlow has {spec}, but TEMPLATEFLOW_HOME {home} does not (it holds {available}): run `templateflow "
            "update` where you are online, or set TEMPLATEFLOW_HOME to a folder that has it."
        )

    def get(**entities: str | None) -> Path | None:
        from requests import RequestException

        try:
            found = api.get(name, cohort=cohort, resolution=resolution, extension=".nii.gz", **entities)
        except (RequestException, OSError, RuntimeError) as error:
            raise InputError(
                f"The template {spec} is not in {home} and cannot be downloaded ({type(error).__name__}): go online "
                "once, or set TEMPLATEFLOW_HOME to a folder that has it."
            ) from None
        paths = [Path(path) for path in ([found] if isinstance(found, str | os.PathLike) else found)]
        return next((path for path in paths if _variants([path], name, entities["suffix"], entities["desc"])), None)

    # TemplateFlow writes into the final file: another process that started meanwhile would read a part of it.
    with ExitStack() as stack:
        with suppress(OSError):  # a folder that cannot be written to gets no downloads either
            waits = partial(log.info, "another run may be fetching %s: waiting for it", spec)
            stack.enter_context(one_at_a_time(home / f".{name}.lock", waits))
        image = get(suffix=suffix, desc=None)
        if image is None:
            raise InputError(f"The template {spec} has no {suffix} image: choose another one or give --atlas IMAGE.")
        mask = mask or get(suffix="mask", desc=profile.name)
    check_atlas(image, labels, mask)
    return Atlas(
        name=name,
        image=image,
        mask=mask,
        labels=labels,
        skull_stripped=False,
        reference="/".join((ARCHIVE, f"tpl-{name}", *([] if cohort is None else [f"cohort-{cohort}"]), image.name)),
        cohort=None if cohort is None else str(cohort),
        resolution=None if "res" not in asked else str(resolution),
    )


def template_references(atlas: Atlas) -> list[str]:
    """Return the references that a template's description names, as it writes them. Empty for other atlases."""
    described = (folder / "template_description.json" for folder in atlas.image.parents[:2])
    path = next((path for path in described if path.is_file()), None)
    if path is None:
        return []
    try:
        found = read_json(path).get("ReferencesAndLinks", [])
    except InputError:
        return []
    return [str(link) for link in (found.values() if isinstance(found, dict) else found)]


def _parsed(spec: str) -> tuple[str, dict[str, int]]:
    """Split NAME:cohort-C:res-R, or NAME+C:res-R, into the name and the numbers. ``res-native`` is the default."""
    name, *modifiers = spec.split(":")
    if cohort := re.fullmatch(r"(\w+)\+(\d+)", name):
        name, modifiers = cohort[1], [f"cohort-{cohort[2]}", *modifiers]
    asked: dict[str, int] = {}
    for modifier in modifiers:
        match = re.fullmatch(r"(cohort|res)-(\d+)", modifier)
        if modifier == "res-native" and "res" not in asked:
            continue
        if match is None or match[1] in asked:
            raise InputError(
                f"The space {spec}: {modifier!r} is not understood, expected NAME, NAME:cohort-C, NAME+C, NAME:res-R "
                "or NAME:cohort-C:res-R with numbers C and R."
            )
        asked[match[1]] = int(match[2])
    return name, asked


def _templateflow() -> tuple[Any, Path]:
    """Return TemplateFlow's functions, and its folder of templates."""
    # TemplateFlow reads its settings when it is imported. It must not look for updates at every run.
    os.environ.setdefault("TEMPLATEFLOW_AUTOUPDATE", "off")
    try:
        from templateflow import api
        from templateflow.conf import TF_HOME
    except OSError as error:
        raise InputError(
            f"TemplateFlow cannot write {error.filename} ({error.strerror}): set TEMPLATEFLOW_HOME to a folder that "
            "has the template."
        ) from None
    return api, Path(TF_HOME)


def _packed_files() -> list[Path]:
    """Return the files of all templates that this version of TemplateFlow knows."""
    archive = importlib.resources.files("templateflow") / "conf" / "templateflow-skel.zip"
    with archive.open("rb") as stream, zipfile.ZipFile(stream) as packed:
        return [Path(name) for name in packed.namelist()]


def _variants(paths: Iterable[Path], name: str, suffix: str | None, desc: str | None = None) -> set[Variant]:
    """Return cohort and resolution of those images of a template that have no other entity than `desc`."""
    tail = f"(?:_desc-{desc})?_{suffix}" if desc else f"_{suffix}"
    pattern = re.compile(rf"tpl-{re.escape(name)}(?:_cohort-(\d+))?(?:_res-(\d+))?{tail}\.nii\.gz")
    found = [match for path in paths if (match := pattern.fullmatch(path.name))]
    return {tuple(None if part is None else int(part) for part in match.groups()) for match in found}  # type: ignore[misc]


def _chosen(name: str, asked: dict[str, int], known: set[Variant], suffix: str) -> Variant:
    """Return the variant that was asked for."""
    if not known:
        raise InputError(f"The template {name} has no {suffix} image: choose another one or give --atlas IMAGE.")
    cohorts = sorted({cohort for cohort, _ in known if cohort is not None})
    cohort = asked.get("cohort")
    if cohort not in {cohort for cohort, _ in known}:
        existing = f"the cohorts {', '.join(map(str, cohorts))}" if cohorts else "no cohorts"
        wanted = "one must be chosen" if cohort is None else f"cohort {cohort} is none of them"
        advice = f": give {name}:cohort-{cohorts[0]}, for example." if cohorts else ": leave it out."
        raise InputError(f"The template {name} has {existing}, and {wanted}{advice}")
    resolutions = {resolution for found, resolution in known if found == cohort}
    if "res" in asked:
        if asked["res"] in resolutions:
            return cohort, asked["res"]
    else:
        for default in (1, None):
            if default in resolutions:
                return cohort, default
    numbers = sorted(resolution for resolution in resolutions if resolution is not None)
    existing = f"the resolutions {', '.join(map(str, numbers))}" if numbers else "a single resolution, without a number"
    advice = f"give {name}:res-{numbers[0]}, for example" if numbers else "leave :res- out"
    wanted = f"not {asked['res']}" if "res" in asked else "not 1"
    raise InputError(f"The template {name} has {suffix} images in {existing}, {wanted}: {advice}.")
