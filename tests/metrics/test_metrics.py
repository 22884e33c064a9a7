"""Overlap and regularity against values known beforehand."""

import numpy as np
import pytest

from nio_pydra.metrics import dice, hausdorff_95, jacobian_determinant, mean_of_lowest, regularity
from nio_pydra.spatial.transforms import DisplacementField

SHAPE = (12, 14, 13)
OBLIQUE = np.array([[1.9, 0.3, 0, -5], [-0.3, 2.1, 0.4, 8], [0.1, -0.2, 3.0, -20], [0, 0, 0, 1.0]])


def linear_field(matrix: np.ndarray, affine: np.ndarray = OBLIQUE) -> DisplacementField:
    """Field of the world map ``x -> matrix @ x``."""
    voxels = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ voxels + affine[:3, 3:]
    return DisplacementField(((matrix - np.eye(3)) @ world).reshape(3, *SHAPE).astype(np.float32), affine)


def test_dice_equals_monai_and_skips_absent_labels():
    monai = pytest.importorskip("monai.metrics")
    import torch

    a, b = np.random.default_rng(0).integers(0, 5, (2, 10, 11, 12))
    a[a == 4] = 7  # 4 is absent from a, 7 from b
    found = dice(a, b)
    assert list(found) == [1, 2, 3]
    one_hot = [torch.from_numpy(np.stack([x == k for k in (1, 2, 3)]))[None].float() for x in (a, b)]
    assert list(found.values()) == pytest.approx(monai.compute_dice(*one_hot)[0].tolist())


def test_mean_of_the_lowest_third():
    assert mean_of_lowest([5, 1, 2, 9, 9, 9, 9, 9, 9, 3]) == 2


def test_jacobian_of_a_linear_map_is_its_determinant_whatever_the_grid():
    matrix = np.array([[1.2, 0.1, 0], [0, 0.9, 0.05], [0.1, 0, 1.1]])
    assert np.allclose(jacobian_determinant(linear_field(matrix)), np.linalg.det(matrix), atol=1e-4)


def test_a_mirrored_region_counts_as_folded():
    field = linear_field(np.diag([1.0, 1.0, -0.5]), np.eye(4))
    found = regularity(field, np.ones(SHAPE, bool))
    assert found.fold_percent == 100 and found.std_jacobian == pytest.approx(0, abs=1e-4)


def test_a_label_lost_in_resampling_scores_zero():
    a, b = np.array([1, 1, 2, 2]), np.array([1, 1, 1, 1])
    assert list(dice(a, b)) == [1]
    assert dice(a, b, {1, 2})[2] == 0


def test_hausdorff_95_equals_monai_and_skips_absent_labels():
    monai = pytest.importorskip("monai.metrics")
    import torch
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(1).normal(size=(2, 5, 24, 26, 22))
    a, b = gaussian_filter(noise, (0, 0, 3, 3, 3)).argmax(axis=1)
    a[a == 4], b[b == 3] = 20_000, 0
    spacing = (1.0, 2.5, 0.8)
    found = hausdorff_95(a, b, [1, 2, 3, 20_000], spacing)
    assert list(found) == [1, 2]
    one_hot = [torch.from_numpy(np.stack([x == k for k in (1, 2)]))[None].float() for x in (a, b)]
    expected = monai.compute_hausdorff_distance(*one_hot, include_background=True, percentile=95, spacing=spacing)
    assert list(found.values()) == pytest.approx(expected[0].tolist(), rel=1e-5)


def test_hausdorff_95_of_a_shifted_block_is_the_shift():
    a, b = np.zeros((2, 30, 20, 20), int)
    a[5:12, 5:12, 5:12] = b[9:16, 5:12, 5:12] = 7
    assert hausdorff_95(a, b, [7], (0.5, 1, 1)) == {7: pytest.approx(2.0)}
    with pytest.raises(ValueError, match="expected the same"):
        hausdorff_95(a, b[1:], [7], (1, 1, 1))
