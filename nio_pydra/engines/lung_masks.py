"""Masks of both lungs in a CT of the chest: a threshold, connected components, and the windpipe taken out.

Aerated lung is far darker than the tissue around it, so a threshold finds it. Air outside the body touches the sides of
the image and is left out. The windpipe and the main bronchi are followed slice by slice from the top, where they are
small, round and separate. Vessels inside the lungs belong to them. A consolidated lung, which is as bright as tissue,
needs a mask from elsewhere.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt

__all__ = ["find_lungs"]

AERATED_HU = -400.0
"""Between aerated lung, about -850, and tissue, about 0, a little nearer to lung."""
LUMEN_HU = -900.0
"""Below most of the parenchyma: air inside the windpipe is about -1000."""
SMALLEST_SHARE = 0.1
"""Share of the largest component's volume from which another component is a lung as well."""
SMALLEST_LITRES = 0.05
LARGEST_LUMEN_MM2 = 900.0
"""Cross-section of the windpipe, or of both main bronchi together. More means that lung is meant."""
WALL_MM = 2.0
"""Thickness of the windpipe's wall, which the threshold does not see."""
CLOSED_MM = 5.0
"""Radius of vessels at the border of the lungs that are closed over."""


def find_lungs(ct: Nifti1Image) -> NDArray[np.bool_]:
    """Find both lungs in a CT; of a part of a chest, those that it shows.

    Parameters
    ----------
    ct : Nifti1Image
        ``(X, Y, Z)``, Hounsfield units, axes in any order.

    Returns
    -------
    ndarray of bool
        ``(X, Y, Z)``, True in the lungs with their vessels. All False if there are none.
    """
    upright = nib.as_closest_canonical(ct)
    values = np.asanyarray(upright.dataobj)
    spacing = np.linalg.norm(upright.affine[:3, :3], axis=0)
    air = _inside_body(values < AERATED_HU)
    lungs = _largest(air & ~_windpipe(air & (values < LUMEN_HU), spacing), spacing)
    if lungs.any():
        lungs = _closed(lungs, spacing)
    canonical = Nifti1Image(lungs.astype(np.uint8), upright.affine)
    back = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(canonical.affine), nib.orientations.io_orientation(ct.affine)
    )
    return np.asanyarray(canonical.as_reoriented(back).dataobj) > 0


def _inside_body(air: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Leave out the air around the body: regions of an axial slice that touch two of its sides, as in a corner.

    A lung that a crop cuts touches one side, so it is kept.
    """
    from skimage.measure import label

    kept = air.copy()
    for z in range(air.shape[2]):
        regions = label(air[:, :, z], connectivity=1)
        sides = [set(np.unique(side)) - {0} for side in (regions[0], regions[-1], regions[:, 0], regions[:, -1])]
        touching = [number for side in sides for number in side]
        kept[:, :, z][np.isin(regions, [number for number in touching if touching.count(number) > 1])] = False
    return kept


def _windpipe(lumen: NDArray[np.bool_], spacing: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return the windpipe and the main bronchi with their walls, followed from the top while they stay small."""
    from skimage.measure import label, regionprops

    found = np.zeros_like(lumen)
    pixel = float(spacing[0] * spacing[1])
    above: NDArray[np.bool_] | None = None
    for z in range(lumen.shape[2] - 1, -1, -1):
        regions = label(lumen[:, :, z], connectivity=1)
        if above is None:
            round_ones = [
                each
                for each in regionprops(regions)
                if 60 <= each.area * pixel <= LARGEST_LUMEN_MM2 and each.eccentricity < 0.9 and each.solidity > 0.85
            ]
            if not round_ones:
                continue
            start = min(round_ones, key=lambda each: abs(each.centroid[0] - lumen.shape[0] / 2))
            here = regions == start.label
        else:
            here = np.isin(regions, np.setdiff1d(np.unique(regions[above]), 0))
            if not here.any() or here.sum() * pixel > max(LARGEST_LUMEN_MM2, 2 * above.sum() * pixel):
                break
        found[:, :, z] = here
        above = here
    if not found.any():
        return found
    return distance_transform_edt(~found, sampling=spacing) <= WALL_MM


def _largest(air: NDArray[np.bool_], spacing: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Keep the largest component, and a second one that is large enough to be the other lung."""
    from skimage.measure import label

    regions = label(air, connectivity=1)
    sizes = np.bincount(regions.ravel())[1:]
    if not sizes.size:
        return np.zeros_like(air)
    order = np.argsort(sizes)[::-1][:2]
    least = max(SMALLEST_SHARE * sizes[order[0]], SMALLEST_LITRES * 1e6 / float(np.prod(spacing)))
    return np.isin(regions, [index + 1 for index in order if sizes[index] >= least])


def _closed(lungs: NDArray[np.bool_], spacing: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Close over vessels at the border and fill holes, each lung for itself so that they do not grow together."""
    from skimage.measure import label

    regions = label(lungs, connectivity=1)
    out = np.zeros_like(lungs)
    pad = np.ceil(CLOSED_MM / spacing).astype(int) + 1
    for number in range(1, regions.max() + 1):
        lung = np.pad(regions == number, [(n, n) for n in pad], mode="edge")
        grown = distance_transform_edt(~lung, sampling=spacing) <= CLOSED_MM
        closed = distance_transform_edt(grown, sampling=spacing) > CLOSED_MM
        filled = np.stack([binary_fill_holes(closed[:, :, z]) for z in range(closed.shape[2])], axis=2) | lung
        out |= filled[tuple(slice(n, -n) for n in pad)]
    return out
