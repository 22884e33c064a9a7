"""Inversion of fields, and the removal of folds that stand in its way."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nio_pydra.metrics import jacobian_determinant, round_trip_error
from nio_pydra.spatial.inversion import invert, unfold
from nio_pydra.spatial.transforms import DisplacementField, Transform, apply_affine

SHAPE = (40, 42, 38)
GRID = np.array([[0.95, 0.15, 0, -5], [-0.15, 1.05, 0.12, 8], [0.05, -0.1, 0.9, -20], [0, 0, 0, 1.0]])


def smooth_field(amplitude):
    """Waves of a given height in voxels that end before the border; also the distance from it."""
    voxels = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).astype(np.float32)
    phase = 2 * np.pi * voxels / 20
    vectors = amplitude * np.stack([np.sin(phase[1]) * np.cos(phase[2]), np.sin(phase[2]), np.sin(phase[0])])
    edge = np.minimum(voxels, np.array(SHAPE).reshape(3, 1, 1, 1) - 1 - voxels).min(axis=0)
    return (vectors * np.clip(edge / 8, 0, 1)).astype(np.float32), edge


def in_voxels(vectors, affine=GRID):
    """A field of displacements given in voxels."""
    return DisplacementField(np.tensordot(affine[:3, :3], vectors, axes=1).astype(np.float32), affine)


def way_back(field, inverse, region):
    """Distances in mm of a region's voxels after going forth and back."""
    points = apply_affine(field.affine, np.argwhere(region).astype(np.float64))
    return round_trip_error(Transform((field,)), Transform((inverse,)), points)


@pytest.fixture(scope="module")
def folded():
    """A field that turns inside out in one place: there, a few voxels are thrown past their neighbours."""
    vectors = 0.3 * smooth_field(1.0)[0]
    vectors[0, 18:21, 18:21, 18:21] += np.random.default_rng(0).uniform(-4, 4, (3, 3, 3)).astype(np.float32)
    return in_voxels(vectors)


def test_inverse_undoes_a_smooth_steep_field():
    vectors, edge = smooth_field(1.1)
    field, inside = in_voxels(vectors), edge > 6
    identity = DisplacementField(np.zeros_like(field.vectors), field.affine)
    assert np.median(way_back(field, identity, inside)) > 0.5
    errors = way_back(field, invert(field), inside)
    assert np.median(errors) < 0.1 and np.percentile(errors, 99) < 0.5


def test_a_rough_field_is_undone_at_the_voxels_and_between_them():
    # As rough as that of a registration: an inverse that is exact at its nodes, and linear between them, misses the
    # voxels by a median of 0.108 mm and the points between them by 0.058 mm.
    rng = np.random.default_rng(1)
    noise = gaussian_filter(rng.standard_normal((3, *SHAPE)), (0, 1.5, 1.5, 1.5))
    edge = smooth_field(1.0)[1]
    field = unfold(in_voxels((0.55 * noise / noise.std() * np.clip(edge / 8, 0, 1)).astype(np.float32)))
    inverse = invert(field)
    centres = apply_affine(GRID, np.argwhere(edge > 6).astype(np.float64))
    between = apply_affine(GRID, rng.uniform(7, np.array(SHAPE) - 8, (20_000, 3)))

    def median_error(points, there, back):
        return np.median(round_trip_error(Transform((there,)), Transform((back,)), points))

    assert median_error(centres, field, inverse) < 0.06
    assert median_error(between, field, inverse) < 0.053
    assert median_error(centres, inverse, field) < 0.1
    assert median_error(between, inverse, field) < 0.053


def test_a_field_that_leaves_the_grid_is_undone_where_it_can_be():
    vectors = np.zeros((3, *SHAPE), np.float32)
    vectors[0], vectors[2] = 3.25, -2.5
    inverse = invert(in_voxels(vectors))
    assert np.allclose(inverse.vectors, in_voxels(-vectors).vectors, atol=0.02)


def test_unfolding_leaves_no_cell_folded_and_touches_nothing_else(folded):
    repaired = unfold(folded)
    assert jacobian_determinant(folded).min() < 0 < jacobian_determinant(repaired).min()
    assert (_corner_determinants(repaired) > 0.09).all()
    away = np.ones(SHAPE, bool)
    away[14:25, 14:25, 14:25] = False
    assert np.allclose(repaired.vectors[:, away], folded.vectors[:, away], atol=1e-4)


def test_an_unfolded_field_can_be_inverted(folded):
    around = np.zeros(SHAPE, bool)
    around[14:25, 14:25, 14:25] = True
    errors = [np.percentile(way_back(f, invert(f), around), 99) for f in (folded, unfold(folded))]
    assert errors[0] > 1 and errors[1] < 0.4


def test_a_field_without_folds_is_returned_as_it_is():
    field = in_voxels(smooth_field(0.3)[0])
    assert unfold(field) is field


def _corner_determinants(field):
    """Determinants at all eight corners of every cell, from one-sided differences."""
    voxels = np.tensordot(np.linalg.inv(field.affine[:3, :3]), field.vectors, axes=1)
    found = []
    for corner in np.ndindex(2, 2, 2):
        columns = []
        for axis in range(3):
            steps = np.diff(voxels, axis=axis + 1)
            for other in {0, 1, 2} - {axis}:
                steps = np.take(steps, np.arange(voxels.shape[other + 1] - 1) + corner[other], axis=other + 1)
            columns.append(steps + np.eye(3)[axis].reshape(3, 1, 1, 1))
        found.append(np.linalg.det(np.moveaxis(np.stack(columns), (0, 1), (-1, -2))))
    return np.stack(found)
