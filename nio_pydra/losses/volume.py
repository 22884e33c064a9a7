"""Volume change: how far the Jacobian determinants of a field are from 1, with a barrier before folds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nio_pydra.spatial.unit_grid import unit_to_voxel

__all__ = ["volume_change"]

BARRIER_START = 0.25
"""Determinant below which the barrier starts."""
BARRIER_SLOPE = 50.0
"""Cost of each unit of the determinant below that."""


def volume_change(field: Tensor) -> Tensor:
    """Return the mean volume change of a unit field, with a barrier before folds.

    With the Jacobian determinant J of the map ``x -> x + u(x)`` in voxels, a voxel's share is ``(J - 1)**2 / J``.
    Growth costs as much as the inverse shrinkage, to a quarter of the volume. The cost of growth is less than linear,
    so that ventricles several times as large as the atlas's can be aligned, which ``(J - 1)**2`` prevents. Below
    J = 0.25 the share grows by 50 for each unit that J falls. Derivatives are central differences, one-sided at the
    borders, as in :func:`nio_pydra.metrics.regularity.jacobian_determinant`.

    Parameters
    ----------
    field : Tensor
        Unit field ``(1, 3, D, H, W)``, every axis of at least 2 voxels.

    Returns
    -------
    Tensor
        Scalar, dimensionless.

    Notes
    -----
    A volume penalty that treats J and 1 / J alike is that of Burger, Modersitzki and Ruthotto, "A hyperelastic
    regularization energy for image registration" (SIAM J. Sci. Comput. 2013), who take the square of this one.
    """
    if field.device.type == "cpu" and field.dtype == torch.float32:
        return _CompiledVolumeChange.apply(field)
    voxels = unit_to_voxel(field)[0]
    rows = [[slope + (i == j) for j, slope in enumerate(torch.gradient(voxels[i]))] for i in range(3)]
    (a, b, c), (d, e, f), (g, h, k) = rows
    determinant = a * (e * k - f * h) - b * (d * k - f * g) + c * (d * h - e * g)
    above = determinant.clamp_min(BARRIER_START)
    return ((above - 1).square() / above + BARRIER_SLOPE * (above - determinant)).mean()


class _CompiledVolumeChange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, field: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        from nio_pydra.losses.kernels import volume_terms

        values = field.detach()[0].contiguous()
        energy = torch.empty(values.shape[1], dtype=torch.float64)
        gradient = torch.empty_like(values)
        volume_terms(values.numpy(), BARRIER_START, BARRIER_SLOPE, energy.numpy(), gradient.numpy())
        ctx.save_for_backward(gradient)
        return (energy.sum() / values[0].numel()).to(field.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream)[None]
