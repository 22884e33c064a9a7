"""Figures of one registration, as SVG files that hold their pictures and load nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from nio_pydra.metrics import jacobian_determinant
from nio_pydra.report.axial import draw_outlines
from nio_pydra.report.canvas import grey_scale, new_figure
from nio_pydra.report.mosaic import Mosaic, mosaic_around
from nio_pydra.report.pages import render
from nio_pydra.spatial.images import load_image, load_labels, load_mask
from nio_pydra.spatial.itk import read_h5
from nio_pydra.spatial.transforms import DisplacementField, Transform
from nio_pydra.system.files import write_text
from nio_pydra.system.forks import fork_safe

__all__ = ["FIGURES", "Drawn", "draw_figures"]

FIGURES = {
    "registration": "The atlas, and the registered scan in its space. The picture changes between both; point at a "
    "word above it to hold one, or to see the scan after the affine alone. Structures and edges must not jump.",
    "mask": "The scan with the mask that was used. The atlas's mask, and its labels where it has any, are brought onto "
    "the scan by the inverse transform.",
    "jacobian": "Local change of volume by the deformation, without the affine: red where the scan is larger than the "
    "atlas, blue where it is smaller. Folds are bright yellow.",
    "labels": "Labels of the atlas, and of the scan in the atlas's space, on both images.",
}
"""Kinds of figures in the order of the page, with their captions."""

ATLAS_COLOUR, SCAN_COLOUR, LABEL_COLOUR = "#ff4d4d", "#4db8ff", "#ffd34d"
FOLD_COLOUR = (255, 255, 0)
LARGEST_CHANGE = 2.0
"""End of the colour scale: the logarithm to base 2 of the Jacobian determinant."""
QUALITY = 88
"""Of JPEG pictures, in percent."""
SHARPNESS = 2
"""Pixels of outlines per pixel of the picture."""
LETTER = 7.6
"""Mean width of a letter of the legend, in pixels."""


@dataclass(frozen=True)
class Drawn:
    """Files of a registration from which its figures are drawn.

    Attributes
    ----------
    atlas, atlas_mask : Path
        Atlas and mask of the object on its grid.
    scan, mask : Path
        Scan and mask of the object on its grid.
    forward_xfm, inverse_xfm : Path
        ITK composites from atlas to scan points, and back.
    labels_of_atlas : Path or None
        Labels of the atlas on its grid.
    labels : Path or None
        Labels of the scan in the atlas's space.
    """

    atlas: Path
    atlas_mask: Path
    scan: Path
    mask: Path
    forward_xfm: Path
    inverse_xfm: Path
    labels_of_atlas: Path | None = None
    labels: Path | None = None


@dataclass(frozen=True)
class Outlines:
    """What is outlined in a picture.

    Attributes
    ----------
    labels : ndarray
        ``(rows, columns)``; 0 is background.
    colour, text : str
        Colour and its meaning.
    width : float
        In pixels of the picture.
    """

    labels: NDArray[np.floating]
    colour: str
    text: str
    width: float = 1.1


@fork_safe
def draw_figures(files: Drawn, folder: Path) -> dict[str, Path]:
    """Draw the figures of one registration.

    Parameters
    ----------
    files : Drawn
        Files of the registration.
    folder : Path
        Folder for the figures.

    Returns
    -------
    dict of str to Path
        SVG files by the kinds of `FIGURES`. ``jacobian`` is missing where there is no deformation, ``labels`` where the
        scan or the atlas has none.

    Raises
    ------
    InputError
        If a file cannot be used.
    """
    atlas, scan = load_image(files.atlas, "atlas"), load_image(files.scan)
    atlas_mask, mask = load_mask(files.atlas_mask), load_mask(files.mask)
    forward, inverse = read_h5(files.forward_xfm), read_h5(files.inverse_xfm)
    view = mosaic_around(atlas_mask)
    affine = Transform(tuple(step for step in forward.steps if not isinstance(step, DisplacementField)))
    shown = {
        "atlas": _grey(view.sample(atlas)),
        "registered scan": _grey(view.sample(scan, forward)),
        "scan after the affine": _grey(view.sample(scan, affine)),
    }
    of_atlas = Outlines(view.sample(atlas_mask, mode="nearest"), ATLAS_COLOUR, "mask of the atlas")
    of_scan = Outlines(view.sample(mask, forward, "nearest"), SCAN_COLOUR, "mask of the scan, registered")
    written = {"registration": _write("registration", shown, [of_atlas, of_scan], folder)}
    written["mask"] = _draw_scan(scan, mask, atlas_mask, inverse, files, folder)
    deformation = next((step for step in forward.steps if isinstance(step, DisplacementField)), None)
    if deformation is not None:
        written["jacobian"] = _draw_jacobian(view, deformation, atlas_mask, folder)
    if files.labels is not None and files.labels_of_atlas is not None:
        sets = [
            Outlines(view.sample(load_labels(path), mode="nearest"), colour, text, 0.8)
            for path, colour, text in (
                (files.labels_of_atlas, ATLAS_COLOUR, "labels of the atlas"),
                (files.labels, SCAN_COLOUR, "labels of the scan, registered"),
            )
        ]
        written["labels"] = _write("labels", shown, sets, folder)
    return written


def _draw_scan(
    scan: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    atlas_mask: nib.Nifti1Image,
    inverse: Transform,
    files: Drawn,
    folder: Path,
) -> Path:
    view = mosaic_around(mask)
    outlined = []
    if files.labels_of_atlas is not None:
        labels = view.sample(load_labels(files.labels_of_atlas), inverse, "nearest")
        outlined.append(Outlines(labels, LABEL_COLOUR, "labels of the atlas", 0.6))
    outlined += [
        Outlines(view.sample(atlas_mask, inverse, "nearest"), ATLAS_COLOUR, "mask of the atlas"),
        Outlines(view.sample(mask, mode="nearest"), SCAN_COLOUR, "mask of the scan"),
    ]
    return _write("mask", {"scan": _grey(view.sample(scan))}, outlined, folder)


def _draw_jacobian(view: Mosaic, deformation: DisplacementField, mask: nib.Nifti1Image, folder: Path) -> Path:
    from matplotlib import colormaps

    determinant = view.sample(nib.Nifti1Image(jacobian_determinant(deformation), deformation.affine))
    inside = view.sample(mask, mode="nearest") > 0
    folded = inside & (determinant <= 0)
    change = np.log2(np.where(inside & ~folded, determinant, 1))
    scale = colormaps["RdBu_r"]
    colours = (255 * np.asarray(scale((change / LARGEST_CHANGE + 1) / 2))[..., :3]).astype(np.uint8)
    colours[~inside] = 0
    colours[folded] = FOLD_COLOUR
    legend = [(_hex(scale(0.5 + step / (2 * LARGEST_CHANGE))), f"{2.0**step:g}") for step in np.arange(-2, 2.5, 1)]
    return _write("jacobian", {"": colours}, [], folder, [*legend, (_hex(np.array(FOLD_COLOUR) / 255), "fold")])


def _hex(colour: Sequence[float] | NDArray[np.floating]) -> str:
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in colour[:3])


def _grey(shown: NDArray[np.floating]) -> NDArray[np.uint8]:
    low, high = grey_scale(shown)
    spread = max(high - low, float(np.finfo(np.float32).tiny))
    return (255 * np.clip((shown - low) / spread, 0, 1)).astype(np.uint8)


def _write(
    kind: str,
    frames: dict[str, NDArray[np.uint8]],
    outlined: Sequence[Outlines],
    folder: Path,
    legend: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write an SVG. It changes between its first and second picture; a third one can be called up."""
    height, width = next(iter(frames.values())).shape[:2]
    entries, x = [], width - 12
    for colour, text in reversed([*legend, *((one.colour, one.text) for one in outlined)]):
        x -= round(38 + LETTER * len(text))
        entries.append({"colour": colour, "text": text, "x": x})
    text = render(
        "figure.svg",
        title=f"{kind}: {FIGURES[kind]}",
        width=width,
        height=height,
        frames=[{"label": label, "data": _data_uri(_jpeg(picture), "jpeg")} for label, picture in frames.items()],
        legend=entries,
        overlay=_data_uri(_draw_overlay(outlined, height, width), "png") if outlined else None,
    )
    path = folder / f"{kind}.svg"
    write_text(text, path)
    return path


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _draw_overlay(outlined: Sequence[Outlines], height: int, width: int) -> bytes:
    """Return a PNG with outlines on a transparent ground."""
    figure = new_figure(width / 100, height / 100, "none", 100 * SHARPNESS)
    figure.set_layout_engine("none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axis.set_axis_off()
    for each in outlined:
        draw_outlines(axis, each.labels, each.colour, each.width * 0.72)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
