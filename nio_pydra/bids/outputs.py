"""Results of one scan as BIDS derivatives: names, sidecars, and the copy into the output folder."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nio_pydra.system.files import atomic_path
from nio_pydra.system.files import discard_leftovers as discard_dead_files

__all__ = ["Destination", "Products", "discard_leftovers", "engine_desc", "output_path", "sink"]

STEM = (
    "sub-{subject}[/ses-{session}]/anat/sub-{subject}[_ses-{session}]"
    "[_acq-{acquisition}][_ce-{ceagent}][_rec-{reconstruction}][_run-{run}]"
)
SPACE = "[_space-{space}][_cohort-{cohort}][_res-{res}]"
# pybids's own patterns lose `atlas` and know no `xfm`.
PATTERNS = [
    STEM + "_from-{from}_to-{to}_mode-{mode}_{suffix<xfm>}{extension<.h5>}",
    STEM + SPACE + "[_atlas-{atlas}][_desc-{desc}]_{suffix<T1w|dseg|mask>}{extension<.nii.gz|.json>}",
    STEM + SPACE + "_desc-{desc}_{suffix<record>}{extension<.json>}",
]


@dataclass(frozen=True)
class Destination:
    """Where the results of one scan go, and what their names and sidecars say.

    Parameters
    ----------
    out_dir : str
        Root of the derivative dataset.
    entities : dict of str to str
        pybids entities of the T1w image.
    atlas : str
        Name of the atlas in names of transforms, as ``MNIInfant+1``.
    space : dict of str to str
        Entities of images in its space: space, and perhaps cohort and res.
    desc : str
        What `engine_desc` gives.
    source : str
        BIDS URI of the T1w image.
    atlas_reference : str
        URI of the atlas image.
    skull_stripped : bool
        The T1w image shows a brain only.
    labels_desc : str or None
        ``desc`` of the scan's own label image.
    labels_source : str or None
        URI of that label image.
    """

    out_dir: str
    entities: dict[str, str]
    atlas: str
    space: dict[str, str]
    desc: str
    source: str
    atlas_reference: str
    skull_stripped: bool = False
    labels_desc: str | None = None
    labels_source: str | None = None


@dataclass(frozen=True)
class Products:
    """The files that registering one scan gives; None where there were no labels.

    Parameters
    ----------
    forward_xfm, inverse_xfm : path
        ITK composite: forward resamples the T1w image into the atlas's space.
    warped : path
        The T1w image in the atlas's space.
    record : path
        JSON.
    mask : path
        Brain mask on the T1w grid.
    labels, atlas_labels : path or None
        The scan's labels in the atlas's space, the atlas's labels on the T1w grid.
    """

    forward_xfm: Path
    inverse_xfm: Path
    warped: Path
    record: Path
    mask: Path
    labels: Path | None = None
    atlas_labels: Path | None = None


def engine_desc(engine: str) -> str:
    """Return the ``desc`` label of an engine's results: ``nio`` for NIO in both its forms."""
    return {"nio_m": "nio"}.get(engine, engine)


def output_path(destination: Destination, own: Mapping[str, str]) -> Path:
    """Return the path of one result.

    Parameters
    ----------
    destination : Destination
    own : mapping of str to str
        pybids entities of the result itself: suffix, extension, space, ...

    Returns
    -------
    pathlib.Path
    """
    from bids.layout.writing import build_path

    name = build_path({**destination.entities, **own}, PATTERNS, strict=True)
    if name is None:
        raise ValueError(f"no BIDS name for {dict(own)}")
    return Path(destination.out_dir) / name


def sink(products: Products, destination: Destination) -> list[Path]:
    """Copy the results of one scan under their BIDS names and write the sidecars.

    A file that is there with the same content is left alone, so calling this again is cheap; a file is either
    whole or absent at every moment.

    Returns
    -------
    list of pathlib.Path
        The files, sidecars included.

    Raises
    ------
    InputError
        If the output folder cannot be written.
    """
    to, written = destination, []
    scan, atlas = [to.source], to.atlas_reference
    resolution = {"Resolution": f"Resolution {to.space['res']} of the template {to.atlas}"} if "res" in to.space else {}
    files: list[tuple[Path | None, dict[str, str], dict[str, Any] | None]] = [
        (products.forward_xfm, {"from": "T1w", "to": to.atlas, "mode": "image", "suffix": "xfm"}, None),
        (products.inverse_xfm, {"from": to.atlas, "to": "T1w", "mode": "image", "suffix": "xfm"}, None),
        (
            products.warped,
            {**to.space, "desc": to.desc, "suffix": "T1w"},
            {
                "Description": f"T1w image aligned to {to.atlas} by nio_pydra ({to.desc}).",
                "Sources": [*scan, atlas],
                "SpatialReference": atlas,
                "SkullStripped": to.skull_stripped,
                **resolution,
            },
        ),
        (products.record, {**to.space, "desc": to.desc, "suffix": "record"}, None),
        (
            products.mask,
            {"desc": "brain", "suffix": "mask"},
            {
                "Description": "Brain mask used for the registration.",
                "Type": "Brain",
                "Sources": scan,
                "SpatialReference": "orig",
            },
        ),
        (
            products.labels,
            {**to.space, "desc": to.labels_desc or "", "suffix": "dseg"},
            {
                "Description": f"Labels of the scan in the space of {to.atlas} (nearest neighbour).",
                "Sources": [to.labels_source or "", *scan, atlas],
                "SpatialReference": atlas,
                **resolution,
            },
        ),
        (
            products.atlas_labels,
            {"space": "T1w", "atlas": to.atlas, "suffix": "dseg"},
            {
                "Description": f"Labels of {to.atlas} in the space of the T1w image (nearest neighbour).",
                "Sources": [*scan, atlas],
                "SpatialReference": to.source,
            },
        ),
    ]
    for path, own, sidecar in files:
        if path is None:
            continue
        extension = {"xfm": ".h5", "record": ".json"}.get(own["suffix"], ".nii.gz")
        target = output_path(to, {**own, "extension": extension})
        _copy(Path(path), target)
        written.append(target)
        if sidecar is not None:
            beside = output_path(to, {**own, "extension": ".json"})
            _write_text(json.dumps(sidecar, indent=2) + "\n", beside)
            written.append(beside)
    return written


def discard_leftovers(destination: Destination) -> None:
    """Delete what killed runs left half-written in the folder of one scan."""
    discard_dead_files(output_path(destination, {"desc": "brain", "suffix": "mask", "extension": ".nii.gz"}).parent)


def _copy(source: Path, target: Path) -> None:
    if target.exists() and filecmp.cmp(source, target):
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        found = source.stat()
        os.utime(temporary, ns=(found.st_atime_ns, found.st_mtime_ns))  # makes the next comparison quick


def _write_text(text: str, target: Path) -> None:
    content = text.encode()
    if target.exists() and target.read_bytes() == content:
        return
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
