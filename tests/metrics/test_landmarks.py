"""The target registration error follows the direction of a transform, and its summary the definitions."""

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.metrics import landmark_errors
from nio_pydra.spatial.transforms import DisplacementField, Transform, apply_affine

AFFINE = np.array([[2.0, 0, 0, -10], [0, 2.5, 0, 5], [0, 0, 3, 0], [0, 0, 0, 1]])
IMAGE = nib.Nifti1Image(np.zeros((20, 20, 20), np.float32), AFFINE)
GENERATOR = np.random.default_rng(4)
FIXED = apply_affine(AFFINE, GENERATOR.uniform(4, 15, (50, 3)))


def test_the_right_transform_leaves_no_error_and_its_inverse_twice_the_motion():
    motion = np.eye(4)
    motion[:3, 3] = (3, -4, 12)
    moving = apply_affine(motion, FIXED)
    assert landmark_errors(FIXED, moving, Transform((motion,)), IMAGE).errors == pytest.approx(0, abs=1e-9)
    assert landmark_errors(FIXED, moving, Transform(()), IMAGE).errors == pytest.approx(13)
    assert landmark_errors(FIXED, moving, Transform((np.linalg.inv(motion),)), IMAGE).errors == pytest.approx(26)


def test_fields_are_followed():
    vectors = np.zeros((3, 20, 20, 20), np.float32)
    vectors[2] = 6
    field = DisplacementField(vectors, AFFINE)
    assert landmark_errors(FIXED, FIXED, Transform((field,)), IMAGE).errors == pytest.approx(6, abs=1e-5)


def test_snapped_errors_are_between_voxels():
    voxels = np.array([[5.0, 5, 5], [7, 8, 9]])
    moving, mapped = apply_affine(AFFINE, voxels), apply_affine(AFFINE, voxels + np.array([0.4, -0.4, 0.6]))
    found = landmark_errors(mapped, moving, Transform(()), IMAGE)
    assert found.errors == pytest.approx(np.linalg.norm([0.8, 1.0, 1.8]))
    assert found.snapped == pytest.approx(3.0)  # one voxel along z


def test_the_record_summarises_the_errors():
    shifts = np.arange(1, 101) / 50  # mm
    moving = FIXED[:1] + np.outer(shifts, [1, 0, 0])
    record = landmark_errors(np.repeat(FIXED[:1], 100, axis=0), moving, Transform(()), IMAGE).as_record()
    assert record["count"] == 100 and record["errors"] == pytest.approx(shifts)
    assert record["mean"] == pytest.approx(1.01) and record["median"] == pytest.approx(1.01)
    assert record["sd"] == pytest.approx(np.sqrt((100**2 - 1) / 12) / 50)
    assert record["p95"] == pytest.approx(1.901)
    assert record["below_1.2mm"] == pytest.approx(0.59, abs=0.011)  # 1.2 itself is rounded
    assert set(record["snapped"]) == set(record) - {"count", "snapped"}


def test_different_numbers_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(50, 3\) and \(49, 3\)"):
        landmark_errors(FIXED, FIXED[1:], Transform(()), IMAGE)
