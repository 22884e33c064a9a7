"""The atlas that scans are aligned to: a TemplateFlow template, or files."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_image, load_labels, load_mask

__all__ = ["Atlas", "atlas_from_files", "atlas_from_template"]


@dataclass(frozen=True)
class Atlas:
    """An image that scans are aligned to.

    Parameters
    ----------
    name : str
        Letters and digits: its label in BIDS names.
    image : pathlib.Path
    mask : pathlib.Path or None
        Brain mask; None: it has to be made.
    labels : pathlib.Path or None
        Label image on the same grid.
    skull_stripped : bool
        Whether the image shows a brain only.
    reference : str
        The BIDS ``SpatialReference`` of images in its space.
    """

    name: str
    image: Path
    mask: Path | None
    labels: Path | None
    skull_stripped: bool
    reference: str


def atlas_from_files(
    image: Path, name: str, *, labels: Path | None = None, mask: Path | None = None, skull_stripped: bool = False
) -> Atlas:
    """Take an atlas from files.

    Parameters
    ----------
    image : pathlib.Path
        3-D image; a sidecar beside it may say ``SkullStripped``.
    name : str
        Letters and digits.
    labels, mask : pathlib.Path, optional
        Label image and brain mask on the same grid.
    skull_stripped : bool
        Whether the image shows a brain only; the sidecar may say so too.

    Raises
    ------
    InputError
        If the name or one of the files cannot be used.
    """
    if not re.fullmatch(r"[a-zA-Z0-9]+", name):
        raise InputError(f"The atlas name {name!r} cannot be part of a BIDS file name: use letters and digits only.")
    _check(image, labels, mask)
    return Atlas(
        name=name,
        image=image,
        mask=mask,
        labels=labels,
        skull_stripped=skull_stripped or _sidecar(image).get("SkullStripped") is True,
        reference=image.resolve().as_uri(),
    )


def atlas_from_template(name: str, *, labels: Path | None = None, mask: Path | None = None) -> Atlas:
    """Get a template's 1 mm T1w image and its brain mask from TemplateFlow.

    Parameters
    ----------
    name : str
        TemplateFlow identifier, for example ``MNI152NLin2009cAsym``.
    labels, mask : pathlib.Path, optional
        Label image, and a brain mask instead of the template's, on the template's grid.

    Raises
    ------
    InputError
        If the template does not exist, has no such image, or cannot be downloaded.
    """
    # TemplateFlow reads its settings once, when it is imported; it shall not look for news at every run.
    os.environ.setdefault("TEMPLATEFLOW_AUTOUPDATE", "off")
    import requests
    from templateflow import api
    from templateflow.conf import TF_HOME

    def get(desc: str | None, suffix: str) -> Path | None:
        try:
            found = api.get(name, resolution=1, desc=desc, suffix=suffix, extension=".nii.gz")
        except (requests.RequestException, OSError, RuntimeError) as error:
            raise InputError(
                f"The template {name} is not in {TF_HOME} and cannot be downloaded ({type(error).__name__}): go "
                "online once, or set TEMPLATEFLOW_HOME to a folder that has it."
            ) from None
        paths = [found] if isinstance(found, str | os.PathLike) else list(found)
        if len(paths) > 1:
            raise InputError(f"The template {name} has {len(paths)} {suffix} images at 1 mm: give one with --atlas.")
        return Path(paths[0]) if paths else None

    known = api.templates()
    if name not in known:
        raise InputError(f"TemplateFlow has no template {name}: it has {', '.join(known)}.")
    image = get(None, "T1w")
    if image is None:
        raise InputError(f"The template {name} has no T1w image at 1 mm: choose another one or give --atlas IMAGE.")
    mask = mask or get("brain", "mask")
    _check(image, labels, mask)
    return Atlas(
        name=name,
        image=image,
        mask=mask,
        labels=labels,
        skull_stripped=False,
        reference=f"https://templateflow.s3.amazonaws.com/tpl-{name}/{image.name}",
    )


def _check(image: Path, labels: Path | None, mask: Path | None) -> None:
    loaded = load_image(image, role="atlas")
    if labels is not None:
        load_labels(labels, like=loaded)
    if mask is not None:
        load_mask(mask, like=loaded)


def _sidecar(image: Path) -> dict[str, object]:
    path = image.with_name(re.sub(r"\.nii(\.gz)?$", "", image.name) + ".json")
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON ({error}).") from None
