"""Images of any geometry reach the network's space, and fields come back to the fixed image's own grid."""

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from nio_pydra.spatial.conform import network_grid, scale_intensities, to_displacement_field
from nio_pydra.spatial.unit_grid import voxel_to_unit


def brain(shape=(33, 40, 29), affine=None) -> nib.Nifti1Image:
    data = np.zeros(shape, np.float32)
    data[5:-6, 7:-4, 6:-5] = np.random.default_rng(0).random((shape[0] - 11, shape[1] - 11, shape[2] - 11)) + 0.1
    return nib.Nifti1Image(data, np.diag([1.0, 1, 1, 1]) if affine is None else affine)


def reoriented(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(codes))))


@pytest.mark.parametrize("codes", ["RAS", "LPI", "ASL", "PIR"])
def test_orientation_on_disk_makes_no_difference_and_one_millimetre_costs_no_interpolation(codes):
    image = brain()
    turned = reoriented(image, codes)
    volumes = []
    for source in (image, turned):
        grid = network_grid(source, source.get_fdata() > 0)
        assert "".join(nib.aff2axcodes(grid.affine)) == "LIA"
        assert all(n % 8 == 0 for n in grid.shape)
        volumes.append(grid.sample(source))
    assert sorted(volumes[0][volumes[0] > 0]) == sorted(image.get_fdata()[image.get_fdata() > 0].astype(np.float32))
    first, second = (
        v[np.ix_(*[np.flatnonzero(v.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)])] for v in volumes
    )
    assert np.array_equal(first, second)


def test_anisotropic_and_oblique_brains_lie_inside_the_grid_with_room_around():
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.8, 1.1, 3.0])
    image = brain(affine=affine)
    grid = network_grid(image, image.get_fdata() > 0)
    assert np.allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), 1)
    sampled = grid.sample(image)
    edge = np.ones(grid.shape, bool)
    edge[4:-4, 4:-4, 4:-4] = False
    assert sampled.any() and not sampled[edge].any()
    volume = abs(np.linalg.det(affine[:3, :3]))
    assert sampled.sum() == pytest.approx(image.get_fdata().sum() * volume, rel=0.03)


def test_a_field_comes_back_to_the_fixed_grid_as_millimetres():
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (30, -40, 12)
    image = brain(affine=affine)
    grid = network_grid(image, image.get_fdata() > 0)
    # Two voxels along the network's first axis, which runs to the left (-x), a millimetre each.
    voxels = torch.zeros(1, 3, *grid.shape)
    voxels[:, 0] = 2
    field = to_displacement_field(voxel_to_unit(voxels), grid, image)
    assert field.vectors.shape == (3, *image.shape)
    inside = image.get_fdata() > 0
    assert np.allclose(field.vectors[:, inside], np.array([[-2.0], [0], [0]]), atol=1e-4)


def test_beyond_the_network_grid_the_field_fades_out():
    image = brain((120, 40, 30))
    mask = np.zeros(image.shape, bool)
    mask[50:60, 15:25, 10:20] = True
    grid = network_grid(image, mask)
    voxels = torch.ones(1, 3, *grid.shape)
    field = to_displacement_field(voxel_to_unit(voxels), grid, image)
    length = np.linalg.norm(field.vectors, axis=0)
    assert length[0, 20, 15] == 0 and length[55, 20, 15] == pytest.approx(np.sqrt(3), rel=1e-4)
    assert np.abs(np.diff(length[:, 20, 15])).max() < 0.2


def test_scalings():
    volume = np.array([0, 0, 50, 100], np.float32).reshape(1, 2, 2)
    assert scale_intensities(volume, "minmax").flatten().tolist() == [0, 0, 0.5, 1]
    assert scale_intensities(3 * volume, "percentile").max() == 1
    with pytest.raises(ValueError, match="expected minmax or percentile"):
        scale_intensities(volume, "other")
