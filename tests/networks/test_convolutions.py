"""The memory-saving convolutions against the same computation left to autograd."""

import pytest
import torch
from torch.nn import functional

from nio_pydra.networks import convolutions
from nio_pydra.networks.convolutions import LAYOUT, _left_to_autograd, after_upsampling, two_convolutions

SLOPE = 0.2


def plain(inputs, first, second, activate_inputs=False):
    """What is computed, in as many words."""
    inputs = [functional.leaky_relu(x, SLOPE) if activate_inputs else x for x in inputs]
    hidden = sum(functional.conv3d(x, kernel, padding=1) for x, kernel in zip(inputs, first, strict=True))
    return functional.conv3d(functional.leaky_relu(hidden, SLOPE), second, padding=1)


def random(*shape):
    return torch.randn(*shape, requires_grad=True)


# A few outputs, as many as fill the lanes twice over, and sizes that cannot be halved.
@pytest.fixture(params=[(1, 3, (9, 6, 8)), (2, 3, (4, 6, 7)), (1, 6, (6, 5, 8)), (1, 20, (4, 4, 4))], ids=str)
def operands(request):
    torch.manual_seed(0)
    batch, outputs, size = request.param
    inputs = [random(batch, c, *size) for c in (3, 2)]
    return inputs, [random(4, c, 3, 3, 3) for c in (3, 2)], random(outputs, 4, 3, 3, 3)


def assert_gradients_equal(found, expected, leaves, upstream, **options):
    pairs = zip(*(torch.autograd.grad(y, leaves, upstream, **options) for y in (found, expected)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("activate_inputs", [False, True])
@pytest.mark.parametrize("slab_voxels", [1, 4 * 42, 10**6], ids=["single slices", "uneven slabs", "all at once"])
def test_values_and_gradients_equal_those_of_autograd(operands, activate_inputs, slab_voxels, monkeypatch):
    monkeypatch.setattr(convolutions, "SLAB_VOXELS", slab_voxels)
    inputs, first, second = operands
    found = two_convolutions(inputs, first, second, SLOPE, activate_inputs=activate_inputs)
    expected = plain(inputs, first, second, activate_inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    leaves, upstream = (*inputs, *first, second), torch.randn_like(expected)
    torch.autograd.grad(found, leaves, upstream, retain_graph=True)
    assert_gradients_equal(found, expected, leaves, upstream)  # also the second time
    # What runs on other devices.
    torch.testing.assert_close(_left_to_autograd(inputs, first, second, SLOPE, activate_inputs), expected)


@pytest.mark.parametrize("slab_voxels", [1, 8 * 2 * 12, 10**6], ids=["single slices", "uneven slabs", "all at once"])
def test_one_kernel_upsamples_and_convolves(slab_voxels, monkeypatch):
    monkeypatch.setattr(convolutions, "SLAB_VOXELS", slab_voxels)
    torch.manual_seed(0)
    coarse, fine, up = random(1, 3, 5, 3, 4), random(1, 2, 10, 6, 8), random(3, 5, 2, 2, 2)
    first, second = [random(4, c, 3, 3, 3) for c in (5, 2)], random(3, 4, 3, 3, 3)
    kernels = [after_upsampling(up, first[0]), first[1]]
    expected = plain([functional.conv_transpose3d(coarse, up, stride=2), fine], first, second)
    upstream = torch.randn_like(expected)
    for found in (
        two_convolutions([coarse, fine], kernels, second, SLOPE),
        _left_to_autograd([coarse, fine], kernels, second, SLOPE, False),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        expected = plain([functional.conv_transpose3d(coarse, up, stride=2), fine], first, second)
        assert_gradients_equal(found, expected, (coarse, fine, up, *first, second), upstream, retain_graph=True)


def test_autocast_computes_in_bfloat16_and_returns_gradients_in_float32(operands):
    inputs, first, second = operands
    with torch.autocast("cpu", torch.bfloat16):
        found = two_convolutions(inputs, first, second, SLOPE)
        assert after_upsampling(random(3, 5, 2, 2, 2), random(4, 5, 3, 3, 3)).dtype == torch.float32
    assert found.dtype == torch.bfloat16
    expected = plain(inputs, first, second)
    assert (found - expected).norm() < 0.02 * expected.norm()
    found.float().square().sum().backward()
    (by_first,) = torch.autograd.grad(expected.square().sum(), first[:1])
    assert first[0].grad.dtype == torch.float32
    assert (first[0].grad - by_first).norm() < 0.03 * by_first.norm()


def test_an_input_that_needs_no_gradient_gets_none(operands):
    inputs, first, second = operands
    inputs[0].requires_grad_(False)
    two_convolutions(inputs, first, second, SLOPE).sum().backward()
    assert inputs[0].grad is None and inputs[1].grad is not None


@pytest.mark.parametrize("depth", [2, 16])
def test_gradient_by_the_kernel_of_large_slices_is_right_in_bfloat16(depth):
    # oneDNN crashed here on processors with AMX, where a slab had few slices for their size: the last one, of 4.
    torch.manual_seed(0)
    gradient, x = torch.randn(1, 8, depth, 160, 200), torch.randn(1, 3, depth, 160, 200)
    kernel = torch.zeros(8, 3, 3, 3, 3)
    found = convolutions._correlate(
        *(each.bfloat16().contiguous(memory_format=LAYOUT) for each in (gradient, x)), kernel
    )
    expected = torch.nn.grad.conv3d_weight(x, kernel.shape, gradient, padding=1)
    assert (found - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("shape", [(160, 160, 200), (7, 256, 256), (1, 8, 8), (144, 152, 192)])
def test_slabs_cover_a_volume_and_none_is_thin_for_its_slices(shape):
    volume = torch.empty(1, 1, *shape, device="meta")
    slabs = convolutions._slabs(volume, convolutions.SLAB_VOXELS)
    assert [place for slab in slabs for place in range(slab.start, slab.stop)] == list(range(shape[0]))
    least = min(shape[0], shape[1] * shape[2] / convolutions.SLICE_VOXELS)
    assert min(slab.stop - slab.start for slab in slabs) >= least
