"""Sums and means over the cube of voxels around each voxel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["window_means", "window_sums"]


def window_sums(volumes: Tensor, window: int) -> Tensor:
    """Sum over a cube around every voxel, with zeros beyond the border.

    Parameters
    ----------
    volumes : Tensor
        ``(N, C, D, H, W)``.
    window : int
        Edge of the cube in voxels, odd.
    """
    if volumes.device.type == "cpu" and volumes.dtype == torch.float32:
        return _CompiledSums.apply(volumes, window)
    for axis in range(3):
        kernel = [1, 1, 1]
        kernel[axis] = window
        volumes = functional.avg_pool3d(volumes, tuple(kernel), 1, tuple(k // 2 for k in kernel), divisor_override=1)
    return volumes


def window_means(volumes: Tensor, window: int) -> Tensor:
    """Mean over the voxels of a cube that lie inside the volume; see :func:`window_sums`."""
    return window_sums(volumes, window) / window_sums(torch.ones_like(volumes[:1, :1]), window)


class _CompiledSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, volumes: Tensor, window: int) -> Tensor:  # type: ignore[no-untyped-def]
        from nio_pydra.spatial.kernels import window_sums_kernel

        ctx.window = window
        source = volumes.detach().contiguous()
        out = torch.empty_like(source)
        window_sums_kernel(window // 2)(source.flatten(0, 1).numpy(), out.flatten(0, 1).numpy())
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return window_sums(gradient, ctx.window), None  # the sums are a symmetric map, their own adjoint
