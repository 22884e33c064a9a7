"""Diffusion regulariser: mean squared difference of neighbouring displacements."""

from __future__ import annotations

import torch
from torch import Tensor

from nio_pydra.spatial.unit_grid import unit_to_voxel

__all__ = ["diffusion"]


def diffusion(field: Tensor) -> Tensor:
    """Return the mean squared forward difference of a unit field in voxels, averaged over the three axes.

    Parameters
    ----------
    field : Tensor
        Unit field ``(N, 3, D, H, W)``.

    Returns
    -------
    Tensor
        Scalar, dimensionless (voxels per voxel, squared).
    """
    if field.device.type == "cpu" and field.dtype == torch.float32 and len(field) == 1 and min(field.shape[2:]) > 1:
        return _CompiledDiffusion.apply(field)
    voxels = unit_to_voxel(field)
    return sum((voxels.diff(dim=axis).square().mean() for axis in (2, 3, 4)), voxels.new_zeros(())) / 3


class _CompiledDiffusion(torch.autograd.Function):
    @staticmethod
    def forward(ctx, field: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        from nio_pydra.losses.kernels import membrane

        values = field.detach()[0].contiguous()
        _, *shape = values.shape
        # Each axis has one difference fewer than voxels. Channel 0 moves along the last axis.
        counts = [values.numel() * (n - 1) / n for n in shape]
        weights = torch.tensor([[((n - 1) / 2) ** 2 / count / 3 for count in counts] for n in shape[::-1]])
        energy = torch.empty(values.shape[:2], dtype=torch.float64)
        gradient = torch.empty_like(values)
        membrane(values.numpy(), weights.numpy(), energy.numpy(), gradient.numpy())
        ctx.save_for_backward(gradient)
        return energy.sum().to(field.dtype)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream)[None]
