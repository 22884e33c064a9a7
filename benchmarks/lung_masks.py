"""Draw the lung masks that are found in real CTs, and print their volumes.

Usage: python benchmarks/lung_masks.py DATA OUT.png

DATA is the folder of test data: the chest CT and the pair of a right lung of ITKElastix and elastix (Apache-2.0).
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from nio_pydra.engines.lung_masks import find_lungs
from nio_pydra.report.canvas import new_figure
from nio_pydra.spatial.images import load_image

SCANS = {
    "chest CT": "lung/ct_single_phase/chest_ct_phase00_2mm.nii.gz",
    "right lung, follow-up": "lung/elastix_pair/3DCT_lung_followup_RECONSTRUCTED.nii.gz",
    "right lung, baseline": "lung/elastix_pair/3DCT_lung_baseline_small.mha",
}
PLACES = ((2, 0.25), (2, 0.5), (2, 0.75), (1, 0.5), (0, 0.3))
"""Slices of every scan: axis and part of its length, after the axes were brought into the order RAS."""
WINDOW_HU = -1100, 300


def main(data: Path, out: Path) -> None:
    """Draw the picture."""
    figure = new_figure(13, 7.6, "black")
    axes = figure.subplots(len(SCANS), len(PLACES))
    for row, (name, file) in zip(axes, SCANS.items(), strict=True):
        image = load_image(data / file)
        mask = find_lungs(image)
        litres = mask.sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1e6
        print(f"{name}: {image.shape}, {litres:.2f} litres")
        upright = nib.as_closest_canonical(image)
        inside = nib.as_closest_canonical(nib.Nifti1Image(mask.astype(np.uint8), image.affine))
        size = np.linalg.norm(upright.affine[:3, :3], axis=0)
        for axis, (direction, part) in zip(row, PLACES, strict=True):
            index = int(part * upright.shape[direction])
            ct, lung = (np.asanyarray(each.dataobj).take(index, direction).T for each in (upright, inside))
            across, up = (size[each] for each in range(3) if each != direction)
            axis.imshow(ct, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], origin="lower", aspect=up / across)
            if lung.any():
                axis.contour(lung, [0.5], colors="#ff4d4d", linewidths=0.8)
            axis.set_axis_off()
        row[0].set_title(f"{name}, {litres:.2f} litres", color="white", fontsize=8, loc="left")
    figure.savefig(out, dpi=70)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
