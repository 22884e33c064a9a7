"""The pairs of the chest experiment: read where they are real, made where they are simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_opening, distance_transform_edt

from nio_pydra.comparison.dirlab import CASES
from nio_pydra.comparison.landmark_pairs import LandmarkPair
from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.engines.masks import make_mask
from nio_pydra.profiles import BRAIN, LUNG
from nio_pydra.simulation.breathing import expiration, fit_breathing, into_box
from nio_pydra.spatial.images import load_image, load_mask, save_image
from nio_pydra.spatial.landmarks import read_pair
from nio_pydra.spatial.transforms import apply_affine
from nio_pydra.system.files import atomic_path

NOISE_HU = 20.0
"""Standard deviation of the noise that is added to both simulated scans, on its own in each."""
BONE_HU, BONE_MM = 350, 4.0
"""Ribs and spine are brighter, and farther from the lungs, than vessels with contrast medium are."""
STILL_MM = 20.0
"""One still point is taken from each cube of this size that holds bone."""
WRONG_POINT = 20
"""Landmark of the elastix pair, from 0, that looks wrong: it stays far away under the published registration too."""
TRUE_SLICES = {("dataset18", "cyc_1_10"): 4.0}
"""Distance of the slices in mm where the header is wrong."""
BODY = replace(BRAIN, name="body", smallest_match=0.0, limits={})
"""MR of the trunk: the whole field of view is compared, and there is no intensity with a unit."""
DIRLAB = "lung/dirlab4dct_landmarks"


@dataclass(frozen=True)
class Case:
    """One pair of images with landmarks.

    Attributes
    ----------
    part, name : str
    pair : LandmarkPair
    prealign : bool
        Whether the images are first aligned by an affine. Otherwise they lie in one frame of one scanner.
    groups : mapping of str to ndarray
        Numbers of the landmarks that are averaged, by the heading of their column.
    everywhere : tuple of ndarray or None
        True pairs of points in the whole lung, fixed and moving, where they are known.
    """

    part: str
    name: str
    pair: LandmarkPair
    prealign: bool
    groups: Mapping[str, np.ndarray]
    everywhere: tuple[np.ndarray, np.ndarray] | None = None


def elastix(data: Path, work: Path, most: int | None = None) -> list[Case]:
    """Return the real pair of elastix: a right lung, baseline and follow-up."""
    folder = data / "lung" / "elastix_pair"
    images = folder / "3DCT_lung_baseline_small.mha", folder / "3DCT_lung_followup_RECONSTRUCTED.nii.gz"
    masks = folder / "3DCT_lung_baseline_mask.mha", folder / "3DCT_lung_followup_mask.mha"
    points = read_pair(
        folder / "CT_3D_lung_fixed_point_set_corrected.txt", load_image(images[0]),
        folder / "CT_3D_lung_moving_point_set_corrected.txt", load_image(images[1]),
    )  # fmt: skip
    scans = [ScanFiles(image, mask) for image, mask in zip(images, masks, strict=True)]
    numbers = np.arange(len(points[0]))
    groups = {"all": numbers, f"without {WRONG_POINT}": numbers[numbers != WRONG_POINT]}
    return [Case("elastix", "right lung", LandmarkPair(scans[0], scans[1], points, LUNG), True, groups)]


def breathing(data: Path, work: Path, most: int | None = None) -> list[Case]:
    """Return the simulated expirations of one real scan, with the motion of DIR-Lab's cases 1 to 10."""
    source = data / "lung" / "ct_single_phase" / "chest_ct_phase00_2mm.nii.gz"
    work.mkdir(parents=True, exist_ok=True)
    mask = work / "lung.nii.gz"
    if not mask.is_file():
        make_mask(source, mask, Runtime(device="cpu"), profile=LUNG)
    scan, lung = load_image(source), load_mask(mask)
    return [_simulated(data, work, scan, lung, number) for number in list(CASES)[:most]]


def _simulated(data: Path, work: Path, scan: nib.Nifti1Image, lung: nib.Nifti1Image, number: int) -> Case:
    files = [work / f"{number:02}_{name}.nii.gz" for name in ("fixed", "moving", "moving_mask")]
    truth = work / f"{number:02}_truth.npz"
    if not truth.is_file():
        rng = np.random.default_rng(number)
        inspired, expired = _motion(data, number, lung)
        found = fit_breathing(expired, inspired, _bones(scan, lung), lung)
        made, made_lung = expiration(scan, lung, found, NOISE_HU, rng)
        noisy = scan.get_fdata(dtype=np.float32) + rng.normal(0, NOISE_HU, scan.shape)
        save_image(np.clip(noisy, -1024, None), scan.affine, files[0], np.int16)
        save_image(made.dataobj, scan.affine, files[1], np.int16)
        save_image(made_lung.dataobj, scan.affine, files[2], np.uint8)
        moved = found.map_points(expired)
        inside = _at(lung, moved)
        voxels = np.argwhere(np.asanyarray(made_lung.dataobj))
        places = apply_affine(scan.affine, voxels[(voxels % 2 == 0).all(axis=1)].astype(float))
        volumes = found.jacobian(places)
        with atomic_path(truth) as temporary, temporary.open("wb") as file:
            np.savez(
                file, fixed=moved[inside], moving=expired[inside], fixed_lung=found.map_points(places),
                moving_lung=places, smoothing=found.smoothing, jacobian=[volumes.min(), volumes.mean(), volumes.max()],
                left=np.linalg.norm(moved - inspired, axis=1).mean(),
            )  # fmt: skip
    known = np.load(truth)
    pair = LandmarkPair(
        ScanFiles(files[0], work / "lung.nii.gz"),
        ScanFiles(files[1], files[2]),
        (known["fixed"], known["moving"]),
        LUNG,
    )
    groups = {"landmarks": np.arange(len(known["fixed"]))}
    return Case("breathing", f"motion {number}", pair, False, groups, (known["fixed_lung"], known["moving_lung"]))


def _motion(data: Path, number: int, lung: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the landmarks of a case of DIR-Lab at inspiration and expiration, in the box of another lung."""
    geometry = CASES[number]
    grid = nib.Nifti1Image(np.zeros(geometry.shape, np.uint8), np.diag([*(-np.array(geometry.spacing)), 1.0]))
    names = [data / DIRLAB / f"case{number}_dirlab300_{phase}_xyz.txt" for phase in ("T00_EI", "T50_EE")]
    inspired, expired = read_pair(names[0], grid, names[1], grid)
    source = np.stack([inspired.min(axis=0), inspired.max(axis=0)])
    # 1 % at each end is left to the lung outside its outermost landmarks.
    ends = np.percentile(apply_affine(lung.affine, np.argwhere(np.asanyarray(lung.dataobj)).astype(float)), (1, 99), 0)
    return into_box(inspired, source, ends), into_box(expired, source, ends)


def _bones(scan: nib.Nifti1Image, lung: nib.Nifti1Image) -> np.ndarray:
    """Return points of ribs and spine, which stand still."""
    sizes = np.linalg.norm(scan.affine[:3, :3], axis=0)
    far = distance_transform_edt(np.asanyarray(lung.dataobj) == 0, sampling=sizes) > BONE_MM
    points = apply_affine(scan.affine, np.argwhere(binary_opening((scan.get_fdata() > BONE_HU) & far)).astype(float))
    _, first = np.unique(np.floor(points / STILL_MM), axis=0, return_index=True)
    return points[first]


def _at(mask: nib.Nifti1Image, points: np.ndarray) -> np.ndarray:
    voxels = np.rint(apply_affine(np.linalg.inv(mask.affine), points)).astype(int)
    inside = ((voxels >= 0) & (voxels < mask.shape)).all(axis=1)
    found = np.zeros(len(points), bool)
    found[inside] = np.asanyarray(mask.dataobj)[tuple(voxels[inside].T)] > 0
    return found


def liver(data: Path, work: Path, most: int | None = None) -> list[Case]:
    """Return the liver's motion in MR: four subjects, two states of breathing each, to the end of expiration."""
    cases = []
    for folder in sorted((data / "liver_4dmri").glob("dataset*/")):
        for path in sorted(folder.glob("cyc_*.mha")):
            state = path.name.split(".")[0]
            fixed = folder / "exhMaster_unmasked.force_direction.mha"
            slices = TRUE_SLICES.get((folder.name, state))
            images = [_sagittal(own, work / f"{folder.name}_{name}", thickness)
                      for own, name, thickness in ((fixed, "exhMaster", None), (path, state, slices))]  # fmt: skip
            points: list[list[np.ndarray]] = [
                [
                    _vtk(folder / f"{stem}LM{region}.vtk", image.image)
                    for stem, image in zip(("exhMaster", state), images, strict=True)
                ]
                for region in ("liver", "outside")
            ]
            both = np.concatenate([points[0][0], points[1][0]]), np.concatenate([points[0][1], points[1][1]])
            count, every = len(points[0][0]), np.arange(len(both[0]))
            pair = LandmarkPair(images[0], images[1], both, BODY)
            groups = {"liver": every[:count], "outside": every[count:]}
            cases.append(Case("liver", f"{folder.name[7:]} {state}", pair, True, groups))
    return cases[:most]


def _sagittal(path: Path, out: Path, thickness: float | None) -> ScanFiles:
    """Write an image with its true axes: x to the back, y to the feet, slices to the left; and a mask of all of it."""
    image, mask = out.with_suffix(".nii.gz"), out.parent / f"{out.name}_mask.nii.gz"
    if not (image.is_file() and mask.is_file()):
        found = load_image(path)
        x, y, z = np.linalg.norm(found.affine[:3, :3], axis=0)
        affine = np.array([[0, 0, -(thickness or z), 0], [-x, 0, 0, 0], [0, -y, 0, 0], [0, 0, 0, 1.0]])
        save_image(np.ones(found.shape), affine, mask, np.uint8)
        save_image(found.dataobj, affine, image, np.uint8)
    return ScanFiles(image, mask)


def _vtk(path: Path, image: Path) -> np.ndarray:
    """Return the points of a VTK file, in mm from the first voxel along the axes of the image, as RAS mm."""
    words = path.read_text().split()
    start = words.index("POINTS")
    count = int(words[start + 1])
    along = np.array(words[start + 3 : start + 3 + 3 * count], float).reshape(count, 3)
    affine = load_image(image).affine
    return apply_affine(affine, along / np.linalg.norm(affine[:3, :3], axis=0))


PARTS: Mapping[str, Callable[[Path, Path, int | None], list[Case]]] = {
    "elastix": elastix,
    "breathing": breathing,
    "liver": liver,
}
