"""RAS and LPS, checked with ITK itself."""

import ants
import numpy as np
from scipy.spatial.transform import Rotation

from nio_pydra.spatial.lps import affine_from_itk, field_from_itk, itk_geometry, itk_vectors, swap_ras_lps
from nio_pydra.spatial.transforms import apply_affine

SHAPE = (6, 7, 5)


def oblique() -> np.ndarray:
    """Voxel-to-world matrix of anisotropic voxels, first axis to the left."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix() @ np.diag([-1.5, 1, 2.5])
    affine[:3, 3] = 11, -22, 33
    return affine


def lps(points: np.ndarray) -> np.ndarray:
    """RAS points with their first two coordinates turned round."""
    return np.column_stack([-points[:, 0], -points[:, 1], points[:, 2]])


def test_itk_finds_every_voxel_where_the_affine_has_it():
    affine = oblique()
    spacing, origin, direction = itk_geometry(affine)
    np.testing.assert_allclose(spacing, (1.5, 1, 2.5))
    image = ants.from_numpy(
        np.zeros(SHAPE, np.float32), origin=list(origin), spacing=list(spacing), direction=direction
    )
    voxels = np.argwhere(np.ones(SHAPE))
    theirs = [ants.transform_index_to_physical_point(image, list(map(int, voxel))) for voxel in voxels]
    np.testing.assert_allclose(theirs, lps(apply_affine(affine, voxels)), atol=1e-4)
    np.testing.assert_allclose(affine_from_itk(spacing, origin, direction), affine, atol=1e-12)


def test_a_matrix_moves_the_same_points_in_both_worlds():
    points = np.random.default_rng(0).normal(0, 30, (20, 3))
    there = swap_ras_lps(oblique())
    np.testing.assert_allclose(apply_affine(there, lps(points)), lps(apply_affine(oblique(), points)), atol=1e-9)
    np.testing.assert_array_equal(swap_ras_lps(there), oblique())


def test_a_field_of_itk_moves_the_same_points_in_both_worlds():
    vectors = np.random.default_rng(1).normal(0, 3, (*SHAPE, 3))
    field = field_from_itk(vectors, oblique())
    voxels = np.argwhere(np.ones(SHAPE))
    points = apply_affine(oblique(), voxels)
    moved = lps(field.map_points(points))
    np.testing.assert_allclose(moved, lps(points) + vectors.reshape(-1, 3), atol=1e-5)
    np.testing.assert_array_equal(itk_vectors(field), vectors.astype(np.float32))
