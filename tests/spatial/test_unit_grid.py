"""Warping and integration on the unit grid."""

import pytest
import torch
from torch.nn import functional

from nio_pydra.spatial.unit_grid import compose, identity_grid, integrate, unit_to_voxel, upsample, voxel_to_unit, warp

SHAPE = (9, 11, 10)


@pytest.fixture
def image():
    return torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def field():
    return torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(1)) / 5


def test_a_shift_by_whole_voxels_moves_along_the_named_axis(image):
    for axis, amount in enumerate((1, 2, -1)):
        voxels = torch.zeros(1, 3, *SHAPE)
        voxels[:, axis] = amount
        moved = warp(image, voxel_to_unit(voxels))
        expected = image.roll(-amount, dims=axis + 2)
        inside = (slice(3, -3),) * 3
        assert torch.allclose(moved[0, 0][inside], expected[0, 0][inside], atol=1e-5)


def test_voxel_and_unit_fields_convert_into_each_other(field):
    assert torch.allclose(voxel_to_unit(unit_to_voxel(field)), field, atol=1e-6)


def test_compiled_warp_and_its_gradient_equal_torch(image, field):
    results = []
    for compiled in (True, False):
        leaf = field.clone().requires_grad_()
        if compiled:
            out = warp(image, leaf)
        else:
            grid = identity_grid(SHAPE, device=leaf.device) + leaf.permute(0, 2, 3, 4, 1)
            out = functional.grid_sample(image, grid, padding_mode="border", align_corners=True)
        (out * torch.linspace(0, 1, out.numel()).view_as(out)).sum().backward()
        results.append((out.detach(), leaf.grad))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-4)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 6), (1, 1, 1, 2, 1)], ids=str)
def test_compiled_upsampling_and_its_gradient_equal_torch(shape, factor):
    coarse = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    results = []
    for dtype in (torch.float32, torch.float64):  # only float32 is compiled
        leaf = coarse.to(dtype, copy=True).requires_grad_()
        fine = upsample(leaf, factor)
        (fine * torch.linspace(-1, 1, fine.numel(), dtype=dtype).view_as(fine)).sum().backward()
        results.append((fine.detach().double(), leaf.grad.double()))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-4)


def test_integral_of_the_negated_velocity_is_the_inverse():
    velocity = upsample(torch.randn(1, 3, 5, 5, 5, generator=torch.Generator().manual_seed(2)) / 20, 4)
    forward, backward = integrate(velocity), integrate(-velocity)
    back = forward + torch.cat([warp(backward[:, c : c + 1], forward) for c in range(3)], dim=1)
    assert unit_to_voxel(forward).abs().max() > 0.5
    inside = unit_to_voxel(back)[:, :, 4:-4, 4:-4, 4:-4]
    assert inside.norm(dim=1).median() < 0.02 * unit_to_voxel(forward).norm(dim=1).max()


def test_integral_of_a_constant_velocity_is_itself():
    velocity = torch.full((1, 3, 6, 6, 6), 0.05)
    assert torch.allclose(integrate(velocity), velocity, atol=1e-5)


@pytest.mark.parametrize("shape", [(18, 5, 9), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("size", [0.05, 0.6])  # the larger one points beyond the border
def test_compiled_integral_and_its_gradient_equal_torch(shape, size):
    velocity = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(4)) * size
    results = []
    for dtype in (torch.float32, torch.float64):  # only float32 is compiled
        leaf = velocity.to(dtype, copy=True).requires_grad_()
        field = integrate(leaf, 5)
        (field * torch.linspace(-1, 1, field.numel(), dtype=dtype).view_as(field)).sum().backward()
        results.append((field.detach().double(), leaf.grad.double()))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert (results[0][1] - results[1][1]).abs().max() < 1e-5 * results[1][1].abs().max()


@pytest.mark.parametrize("size", [0.05, 0.6])  # the larger one points beyond the border
def test_compiled_composition_and_its_gradient_equal_torch(size):
    shape = (18, 5, 9)
    first, then = torch.randn(2, 1, 3, *shape, generator=torch.Generator().manual_seed(4)) * size
    results = []
    for dtype in (torch.float32, torch.float64):  # only float32 is compiled
        leaf = first.to(dtype, copy=True).requires_grad_()
        field = compose(leaf, then.to(dtype))
        (field * torch.linspace(-1, 1, field.numel(), dtype=dtype).view_as(field)).sum().backward()
        results.append((field.detach().double(), leaf.grad.double()))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert (results[0][1] - results[1][1]).abs().max() < 1e-5 * results[1][1].abs().max()


def test_a_field_after_zero_and_zero_after_a_field_are_the_field():
    field = torch.randn(1, 3, 6, 7, 8, generator=torch.Generator().manual_seed(4)) * 0.2
    zero = torch.zeros_like(field)
    assert torch.equal(compose(field, zero), field) and torch.allclose(compose(zero, field), field, atol=1e-6)


def test_gradient_of_the_integral_does_not_depend_on_the_number_of_threads():
    velocity = torch.randn(1, 3, 21, 8, 9, generator=torch.Generator().manual_seed(4)) * 0.2
    threads, gradients = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            leaf = velocity.clone().requires_grad_()
            integrate(leaf).square().sum().backward()
            gradients.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
