"""Simulated subjects: what they call the truth is true."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from nio_pydra.metrics import dice
from nio_pydra.simulation import Appearance, Template, TrueMap, make_dataset, mni152, random_map, scan


@pytest.fixture(scope="module")
def template() -> Template:
    return mni152(resolution=3)


@pytest.fixture(scope="module")
def truth(template: Template) -> TrueMap:
    return random_map(template, np.random.default_rng(5))


@pytest.fixture(scope="module")
def brain_points(template: Template) -> np.ndarray:
    voxels = np.argwhere(np.asarray(template.labels.dataobj) > 0)
    return nib.affines.apply_affine(template.labels.affine, voxels)


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    make_dataset(folder, subjects=1, seed=3)
    return folder


def test_way_back_undoes_the_map_within_a_hundredth_of_a_millimetre(truth, brain_points):
    there = truth.map_points(brain_points)
    back = truth.map_points_back(there)
    assert np.linalg.norm(back - brain_points, axis=1).max() < 0.01


def test_deformation_is_several_mm_beyond_any_affine(truth, brain_points):
    there = truth.map_points(brain_points)
    homogeneous = np.column_stack([brain_points, np.ones(len(brain_points))])
    best, *_ = np.linalg.lstsq(homogeneous, there, rcond=None)
    left = np.linalg.norm(homogeneous @ best - there, axis=1)
    assert 3 < left.mean() < 7


def test_deformation_never_folds(truth, brain_points):
    step = 0.5
    columns = [
        (truth.map_points(brain_points + step * axis) - truth.map_points(brain_points - step * axis)) / (2 * step)
        for axis in np.eye(3)
    ]
    assert np.linalg.det(np.stack(columns, axis=-1)).min() > 0.1


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
def test_scan_seen_through_the_true_map_is_the_template(template, truth, brain_points, orientation):
    image, labels = scan(template, truth, Appearance(orientation=orientation, spacing=3), np.random.default_rng(0))
    assert nib.aff2axcodes(image.affine) == tuple(orientation)
    inside = np.asarray(template.labels.dataobj) > 0
    expected = np.asarray(template.labels.dataobj)[inside]

    def overlap(points: np.ndarray) -> float:
        voxels = nib.affines.apply_affine(np.linalg.inv(labels.affine), points).T
        return float(np.mean([*dice(expected, map_coordinates(labels.get_fdata(), voxels, order=0)).values()]))

    # Nearest neighbour twice on 3 mm voxels: even the truth does not reach 1.
    assert overlap(truth.map_points(brain_points)) > 0.88
    assert overlap(nib.affines.apply_affine(truth.linear, brain_points)) < 0.65


def test_scan_is_zero_outside_the_brain_and_nowhere_inside(template, truth):
    image, labels = scan(template, truth, Appearance(spacing=4), np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(image.dataobj) > 0, np.asarray(labels.dataobj) > 0)


def test_dataset_says_that_its_subjects_are_simulated(dataset_folder):
    description = json.loads((dataset_folder / "bids" / "dataset_description.json").read_text())
    assert "SIMULATED" in description["Name"]
    assert "SIMULATED" in (dataset_folder / "bids" / "README").read_text()


def test_dataset_is_valid_bids(dataset_folder, bids_errors):
    assert bids_errors(dataset_folder / "bids") == []
    assert bids_errors(dataset_folder / "bids" / "derivatives" / "simulation") == []


def test_same_seed_gives_the_same_files_and_another_seed_others(dataset_folder, tmp_path):
    def digest(folder: Path) -> str:
        return hashlib.sha256((folder / "bids/sub-01/anat/sub-01_T1w.nii.gz").read_bytes()).hexdigest()

    make_dataset(tmp_path / "same", subjects=1, seed=3)
    make_dataset(tmp_path / "other", subjects=1, seed=4)
    assert digest(tmp_path / "same") == digest(dataset_folder) != digest(tmp_path / "other")
