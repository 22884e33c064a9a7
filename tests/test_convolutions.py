"""The memory-saving convolutions against the same computation left to autograd."""

import pytest
import torch
from torch.nn import functional

from nio_pydra.networks import convolutions
from nio_pydra.networks.convolutions import two_convolutions

SLOPE = 0.2


def plain(inputs, first, second, activate_inputs):
    """What is computed, in as many words."""
    x = torch.cat(inputs, dim=1)
    x = functional.leaky_relu(x, SLOPE) if activate_inputs else x
    return functional.conv3d(functional.leaky_relu(functional.conv3d(x, first, padding=1), SLOPE), second, padding=1)


@pytest.fixture(params=[1, 2], ids=["one volume", "a batch of two"])
def operands(request):
    torch.manual_seed(0)
    inputs = [torch.randn(request.param, c, 9, 6, 7, requires_grad=True) for c in (3, 2)]
    first, second = (torch.randn(o, i, 3, 3, 3, requires_grad=True) for o, i in ((4, 5), (3, 4)))
    return inputs, first, second


@pytest.mark.parametrize("activate_inputs", [False, True])
@pytest.mark.parametrize("keep_hidden", [False, True])
@pytest.mark.parametrize("slab_voxels", [1, 4 * 42, 10**6], ids=["single slices", "uneven slabs", "all at once"])
def test_values_and_gradients_equal_those_of_autograd(operands, activate_inputs, keep_hidden, slab_voxels, monkeypatch):
    monkeypatch.setattr(convolutions, "SLAB_VOXELS", slab_voxels)
    inputs, first, second = operands
    found = two_convolutions(inputs, first, second, SLOPE, keep_hidden=keep_hidden, activate_inputs=activate_inputs)
    expected = plain(inputs, first, second, activate_inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(expected)
    leaves = (*inputs, first, second)
    for a, b in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_autocast_computes_in_bfloat16_and_returns_gradients_in_float32(operands):
    inputs, first, second = operands
    with torch.autocast("cpu", torch.bfloat16):
        found = two_convolutions(inputs, first, second, SLOPE)
    assert found.dtype == torch.bfloat16
    expected = plain(inputs, first, second, False)
    assert (found - expected).norm() < 0.02 * expected.norm()
    found.float().square().sum().backward()
    (by_first,) = torch.autograd.grad(expected.square().sum(), first)
    assert first.grad.dtype == torch.float32
    assert (first.grad - by_first).norm() < 0.03 * by_first.norm()


def test_an_input_that_needs_no_gradient_gets_none(operands):
    inputs, first, second = operands
    inputs[0].requires_grad_(False)
    two_convolutions(inputs, first, second, SLOPE).sum().backward()
    assert inputs[0].grad is None and inputs[1].grad is not None
