"""The axial slice that pictures show of a scan on an atlas, and outlines of labels in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["HEIGHT", "AxialView", "axial_view", "draw_outlines"]

HEIGHT = 0.55
"""Of the slice, as a share of the labels' height from below: in a brain it shows the ventricles."""
MARGIN = 5
"""Voxels around the labels."""


@dataclass(frozen=True)
class AxialView:
    """Part of an axial slice, in voxels with axes towards right, anterior and superior.

    Attributes
    ----------
    window : tuple of slice
        Along the first two axes.
    level : int
        Along the third.
    """

    window: tuple[slice, slice]
    level: int

    def cut(self, image: nib.Nifti1Image) -> NDArray[np.float64]:
        """Return the slice of an image on the atlas's grid, anterior up: ``(rows, columns)``."""
        return np.rot90(_canonical(image)[..., self.level][self.window])


def axial_view(labels: nib.Nifti1Image) -> AxialView:
    """Return the slice at `HEIGHT` of all that is labelled, cut to what is labelled in any slice, with a margin."""
    labelled = _canonical(labels) != 0
    inside = np.argwhere(labelled.any(axis=2))
    low, high = np.maximum(inside.min(axis=0) - MARGIN, 0), inside.max(axis=0) + MARGIN + 1
    filled = np.flatnonzero(labelled.any(axis=(0, 1)))
    level = round(filled[0] + HEIGHT * (filled[-1] - filled[0]))
    return AxialView((slice(low[0], high[0]), slice(low[1], high[1])), level)


def draw_outlines(axis: Axes, labels: NDArray[np.floating], colour: str, width: float) -> None:
    """Draw the outline of every label of a slice.

    Parameters
    ----------
    axis : Axes
        Shows the slice, one unit per voxel.
    labels : ndarray
        ``(rows, columns)``; 0 is background.
    colour : str
    width : float
        In points.
    """
    from contourpy import contour_generator
    from matplotlib.collections import LineCollection
    from scipy.ndimage import find_objects

    # The outline is looked for in the box around each label alone, which is quick where there are many labels.
    numbers = np.unique(np.maximum(labels, 0), return_inverse=True)[1].reshape(labels.shape)
    if labels.min() > 0:
        numbers = numbers + 1
    padded = np.pad(numbers, 1)
    lines = []
    for number, box in enumerate(find_objects(padded), start=1):
        rows, columns = (slice(part.start - 1, part.stop + 1) for part in box)
        inside = (padded[rows, columns] == number).astype(float)
        corner = (columns.start - 1, rows.start - 1)
        lines += [np.asarray(line, float) + corner for line in contour_generator(z=inside).lines(0.5)]
    axis.add_collection(LineCollection(lines, colors=colour, linewidths=width), autolim=False)


def _canonical(image: nib.Nifti1Image) -> NDArray[np.float64]:
    """Return voxels with their axes towards right, anterior and superior."""
    return np.asarray(nib.as_closest_canonical(image).dataobj, dtype=np.float64)
