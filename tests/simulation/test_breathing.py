"""The simulated expiration follows the landmarks, does not fold, and its truth is exact."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from nio_pydra.simulation.breathing import SMALLEST_JACOBIAN, expiration, fit_breathing, into_box

SHAPE, AFFINE = (50, 44, 48), np.diag([-4.0, -4.0, 4.0, 1.0])
X, Y, Z = np.indices(SHAPE)
LUNG = nib.Nifti1Image(
    (((X - 25) / 14) ** 2 + ((Y - 22) / 12) ** 2 + ((Z - 24) / 15) ** 2 < 1).astype(np.uint8), AFFINE
)


def world(voxels):
    return nib.affines.apply_affine(AFFINE, voxels)


@pytest.fixture(scope="module")
def breathing():
    """Landmarks in the lung that move down by up to 20 mm at its base; ribs that stand still."""
    rng = np.random.default_rng(1)
    inside = np.argwhere(np.asanyarray(LUNG.dataobj))
    expired = world(inside[rng.choice(len(inside), 120, replace=False)])
    share = (160 - expired[:, 2]) / 120
    inspired = expired + np.stack([0 * share, 4 * share, -22 * share], axis=1)
    turns = np.linspace(0, 2 * np.pi, 40)
    ribs = world(np.stack([25 + 21 * np.cos(turns), 22 + 19 * np.sin(turns), np.linspace(4, 44, 40)], axis=1))
    return expired, inspired, ribs, fit_breathing(expired, inspired, ribs, LUNG)


def test_landmarks_and_ribs_go_where_they_should(breathing):
    expired, inspired, ribs, found = breathing
    left = np.linalg.norm(found.map_points(expired) - inspired, axis=1)
    assert np.linalg.norm(inspired - expired, axis=1).mean() > 10
    assert left.mean() < 1.0 and left.max() < 4
    assert np.linalg.norm(found.map_points(ribs) - ribs, axis=1).mean() < 1.0
    corner = world(np.array([[0.0, 0, 0]]))
    assert np.allclose(found.map_points(corner), corner, atol=0.1)


def test_the_map_does_not_fold(breathing):
    found = breathing[3]
    everywhere = world(np.indices(SHAPE).reshape(3, -1).T.astype(float))
    values = found.jacobian(everywhere)
    assert values.min() > SMALLEST_JACOBIAN - 0.05
    inside = np.asanyarray(LUNG.dataobj).reshape(-1) > 0
    assert values[inside].mean() > 1.05  # inspiration is larger


def test_landmarks_that_cross_are_smoothed_until_nothing_folds(breathing):
    expired, inspired, ribs, plain = breathing
    crossing = inspired.copy()
    crossing[::2, 0] += 25
    crossing[1::2, 0] -= 25
    found = fit_breathing(expired, crossing, ribs, LUNG)
    assert found.smoothing > plain.smoothing
    assert found.jacobian(expired).min() > 0


def test_the_scan_shows_at_each_point_what_the_truth_says(breathing):
    found = breathing[3]
    scan = -700 + 100 * np.sin(X / 5) + 80 * np.cos(Y / 4) + 60 * np.sin(Z / 5)
    air = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE)  # no lung: no change of density
    made, _ = expiration(nib.Nifti1Image(scan, AFFINE), air, found, 0.0, np.random.default_rng(0))
    inner = np.argwhere(np.asanyarray(LUNG.dataobj))
    there = nib.affines.apply_affine(np.linalg.inv(AFFINE), found.map_points(world(inner)))
    assert np.abs(made.get_fdata()[tuple(inner.T)] - map_coordinates(scan, there.T, order=3)).max() < 0.5
    assert np.abs(made.get_fdata() - scan)[tuple(inner.T)].mean() > 20


def test_the_lung_keeps_its_mass(breathing):
    """Density times volume over the whole lung is the same in both scans."""
    found = breathing[3]
    scan = nib.Nifti1Image(np.full(SHAPE, -800.0, np.float32), AFFINE)
    made, mask = expiration(scan, LUNG, found, 0.0, np.random.default_rng(0))
    lungs = np.asanyarray(LUNG.dataobj) > 0, np.asanyarray(mask.dataobj) > 0
    before, after = (scan.get_fdata()[lungs[0]] + 1000).sum(), (made.get_fdata()[lungs[1]] + 1000).sum()
    assert lungs[1].sum() < 0.95 * lungs[0].sum()
    assert after == pytest.approx(before, rel=0.01)
    assert made.get_fdata()[lungs[1]].mean() > -790


def test_a_box_becomes_another():
    source, target = np.array([[0.0, 0, 0], [1, 2, 4]]), np.array([[10.0, 10, 10], [12, 12, 12]])
    assert np.allclose(into_box(np.array([[0.5, 1, 4]]), source, target), [[11, 11, 12]])


def test_vessels_keep_their_density(breathing):
    solid = nib.Nifti1Image(np.full(SHAPE, 30.0, np.float32), AFFINE)
    made, _ = expiration(solid, LUNG, breathing[3], 0.0, np.random.default_rng(0))
    assert np.allclose(made.get_fdata(), 30)
