"""Picture of scans on the atlas before and after a registration, with their true errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from nio_pydra.report.axial import axial_view, draw_outlines
from nio_pydra.report.canvas import new_figure
from nio_pydra.system.files import atomic_path

__all__ = ["Comparison", "draw_comparisons"]

CONTOUR = "#ff4d4d"


@dataclass(frozen=True)
class Comparison:
    """One row of the picture; all images on the atlas's grid.

    Attributes
    ----------
    name : str
        Name of the scan.
    before, after : Nifti1Image
        Scan resampled through the affine alone, and through the whole transform.
    error_before, error_after : Nifti1Image
        Distance in mm between estimated and true position, NaN where it is not known.
    """

    name: str
    before: nib.Nifti1Image
    after: nib.Nifti1Image
    error_before: nib.Nifti1Image
    error_after: nib.Nifti1Image


def draw_comparisons(
    rows: Sequence[Comparison], labels: nib.Nifti1Image, path: Path, *, title: str, engine: str
) -> Path:
    """Draw an axial slice of every scan, with the outlines of the atlas's labels, and of its error.

    Parameters
    ----------
    rows : sequence of Comparison
        Rows of the picture.
    labels : Nifti1Image
        Labels of the atlas, whose borders are drawn as outlines.
    path : Path
        PNG file to write.
    title : str
        Title of the picture.
    engine : str
        Name of the engine, for the headings.
    """
    view = axial_view(labels)
    outlined = view.cut(labels)
    height, width = outlined.shape
    figure = new_figure(10.5, 0.8 + len(rows) * 2.25 * height / width, "black")
    axes = np.atleast_2d(figure.subplots(len(rows), 4))
    largest = max(np.nanpercentile(view.cut(row.error_before), 98) for row in rows)
    for line, row in zip(axes, rows, strict=True):
        for axis, image in zip(line[:2], (row.before, row.after), strict=True):
            shown = view.cut(image)
            axis.imshow(shown, cmap="gray", vmin=0, vmax=np.percentile(shown[shown > 0], 99.5))
            draw_outlines(axis, outlined, CONTOUR, 0.7)
        for axis, image in zip(line[2:], (row.error_before, row.error_after), strict=True):
            error = axis.imshow(view.cut(image), cmap="magma", vmin=0, vmax=largest)
            mean = np.nanmean(image.get_fdata())
            axis.set_title(f"mean {mean:.2f} mm", color="white", fontsize=9, y=-0.07)
        line[0].set_ylabel(row.name, color="white", fontsize=11)
    for axis, heading in zip(axes[0], ("affine", engine, "true error, affine", f"true error, {engine}"), strict=True):
        axis.text(0.5, 1.04, heading, color="white", fontsize=11, ha="center", transform=axis.transAxes)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], facecolor="black")
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(error, ax=axes[:, 2:], shrink=0.6, pad=0.01)
    bar.set_label("mm", color="white")
    bar.ax.tick_params(colors="white")
    figure.suptitle(title, color="white", fontsize=12)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path
