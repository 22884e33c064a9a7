"""Align scans that are turned or look unusual, and write how well they match: `docs/results/turns.md`.

    python benchmarks/turns.py ATLAS SCAN [SCAN ...]

ATLAS and SCANs are skull-stripped. Scans on which nothing is tested belong here, since `smallest_match` of
`nio_pydra.profiles.BRAIN` was chosen by what this shows. All are compared in voxels of 3 mm.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from speed import cpu_model

from nio_pydra import __version__
from nio_pydra.engines import affine
from nio_pydra.engines.alignment_check import match_of
from nio_pydra.engines.contract import Runtime, foreground_only
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN
from nio_pydra.spatial.images import load_image
from nio_pydra.spatial.transforms import Transform, resample
from nio_pydra.system.files import atomic_path

RUNTIME = Runtime(device="cpu", threads=1)
VOXEL_MM = 3.0
KINDS = ("as it is", "noise", "bias field", "inverted", "standardised")
REGULAR = tuple(
    Rotation.from_euler(axis, degrees, degrees=True)
    for axis, angles in (("x", (60, 90, -90, 135, 180)), ("y", (60, 90, 180)), ("z", (60, 90, 180)))
    for degrees in angles
)
RANDOM = tuple(Rotation.random(random_state=seed) for seed in range(14))
CORNERS = np.array(np.meshgrid([-60, 60], [-80, 80], [-50, 50], [1])).reshape(4, -1)
"""Of a brain, in mm."""


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("atlas", type=Path)
    parser.add_argument("scans", type=Path, nargs="+", metavar="SCAN", help="the first one is turned")
    parser.add_argument("--table", type=Path, default=Path(__file__).parents[1] / "docs/results/turns.md")
    options = parser.parse_args()
    atlas, scans = coarse(options.atlas), [coarse(path) for path in options.scans]
    names = options.atlas, options.scans[0]
    lines = [
        "# Turned and unusual scans",
        "",
        f"Written by `benchmarks/turns.py`: the affine of {len(scans)} scans, in voxels of 3 mm, to an atlas. Match is "
        f"the mean squared local correlation at 4 mm; below {BRAIN.smallest_match:g} an alignment has failed.",
        "",
        f"{time.strftime('%Y-%m-%d')}, {cpu_model()}, nio_pydra {__version__}, Python {platform.python_version()}.",
        "",
        "| scans | number | smallest match | largest match |",
        "|---|---:|---:|---:|",
    ]
    for kind in KINDS:
        found = [match(atlas, unusual(scan, kind), names) for scan in scans]
        lines.append(f"| {kind} | {len(found)} | {min(found):.2f} | {max(found):.2f} |")
        print(lines[-1], flush=True)
    turns = [*REGULAR, *RANDOM]
    searches, affine.SEARCHES = affine.SEARCHES, ()
    wrong = [found for turn in turns if (found := match(atlas, turned(scans[0], turn), names)) < BRAIN.smallest_match]
    affine.SEARCHES = searches
    lines.append(f"| turned, without other starts: refused | {len(wrong)} | {min(wrong):.2f} | {max(wrong):.2f} |")
    print(lines[-1], flush=True)
    truth = affine.align_images(atlas, scans[0], RUNTIME, names=names).affine
    distances = [distance(atlas, scans[0], turn, truth, names) for turn in turns]
    right = [each for each in distances if each is not None]
    lines += [
        "",
        f"Of {len(turns)} turns of the first scan ({len(REGULAR)} regular ones of 60 to 180 degrees, {len(RANDOM)} at "
        f"random) {len(right)} are aligned, the farthest corner of the brain within {max(right):.1f} mm of where it is "
        f"for the scan as it was; {len(turns) - len(right)} refused.",
    ]
    with atomic_path(options.table) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    print(f"written: {options.table}")


def coarse(path: Path) -> Nifti1Image:
    """A brain in voxels of 3 mm."""
    image = load_image(path)
    factor = VOXEL_MM / np.linalg.norm(image.affine[:3, :3], axis=0)
    shape = np.ceil(np.array(image.shape) / factor).astype(int)
    grid = Nifti1Image(np.zeros(shape, np.uint8), image.affine @ np.diag([*factor, 1]))
    mask = Nifti1Image((np.asanyarray(image.dataobj) != 0).astype(np.uint8), image.affine)
    inside = np.asanyarray(resample(mask, grid, Transform(()), "nearest").dataobj)
    return foreground_only(resample(image, grid, Transform(())), Nifti1Image(inside, grid.affine))


def unusual(brain: Nifti1Image, kind: str) -> Nifti1Image:
    """The same brain with another look."""
    voxels = np.asanyarray(brain.dataobj)
    inside, rng = voxels != 0, np.random.default_rng(0)
    if kind == "noise":
        voxels = voxels + rng.normal(0, 0.15 * voxels.max(), voxels.shape)
    elif kind == "bias field":
        bias = gaussian_filter(rng.normal(size=voxels.shape), 8)
        voxels = voxels * np.exp(bias / np.abs(bias).max())
    elif kind == "inverted":
        voxels = 1.05 * voxels.max() - voxels
    elif kind == "standardised":
        voxels = (voxels - voxels[inside].mean()) / voxels[inside].std()
    image = Nifti1Image(np.where(inside, voxels, 0).astype(np.float32), brain.affine)
    return foreground_only(image, Nifti1Image(inside.astype(np.uint8), brain.affine))


def turned(brain: Nifti1Image, turn: Rotation) -> Nifti1Image:
    """The same brain, turned by its header."""
    return nib.Nifti1Image(np.asanyarray(brain.dataobj), as_affine(turn) @ brain.affine)


def as_affine(turn: Rotation) -> NDArray[np.float64]:
    """A turn around the origin as a 4x4 matrix."""
    matrix = np.eye(4)
    matrix[:3, :3] = turn.as_matrix()
    return matrix


def match(atlas: Nifti1Image, brain: Nifti1Image, names: tuple[Path, Path]) -> float:
    """What the affine, right or wrong, brings two brains to."""
    checked, affine.check_alignment = affine.check_alignment, lambda *_, **__: None
    try:
        return match_of(atlas, brain, affine.align_images(atlas, brain, RUNTIME, names=names).affine)[1]
    finally:
        affine.check_alignment = checked


def distance(
    atlas: Nifti1Image, brain: Nifti1Image, turn: Rotation, truth: NDArray[np.float64], names: tuple[Path, Path]
) -> float | None:
    """How far a corner of the turned brain is from where it should be, in mm; None where the scan is refused."""
    try:
        found = affine.align_images(atlas, turned(brain, turn), RUNTIME, names=names).affine
    except InputError as error:
        print(error, flush=True)
        return None
    error_mm = float(np.linalg.norm(((found - as_affine(turn) @ truth) @ CORNERS)[:3], axis=0).max())
    print(f"turn by {np.degrees(turn.magnitude()):.0f} degrees: {error_mm:.2f} mm", flush=True)
    return error_mm


if __name__ == "__main__":
    main()
