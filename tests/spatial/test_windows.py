"""Sums and means over windows."""

import pytest
import torch
from torch.nn import functional

from nio_pydra.spatial.windows import window_means, window_sums


@pytest.mark.parametrize("window", [1, 3, 7])
@pytest.mark.parametrize("shape", [(2, 3, 9, 8, 10), (1, 1, 7, 8, 7)], ids=str)
def test_compiled_sums_and_their_gradient_equal_torch(shape, window):
    volumes = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    results = []
    for dtype in (torch.float32, torch.float64):  # only float32 is compiled
        leaf = volumes.to(dtype, copy=True).requires_grad_()
        sums = window_sums(leaf, window)
        (sums * torch.linspace(-1, 1, sums.numel(), dtype=dtype).view_as(sums)).sum().backward()
        results.append((sums.detach().double(), leaf.grad.double()))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_means_leave_out_what_lies_beyond_the_border():
    volumes = torch.randn(1, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    expected = functional.avg_pool3d(volumes, 3, stride=1, padding=1, count_include_pad=False)
    torch.testing.assert_close(window_means(volumes, 3), expected)
