"""Fields on the normalised grid of torch: warping, integration, upsampling and conversion to voxels.

A *unit field* is ``(N, 3, D, H, W)``: displacements in the normalised coordinates of
:func:`torch.nn.functional.grid_sample` with ``align_corners=True``, so that -1 and 1 are the centres of the first and
last voxel; channel 0 moves along the LAST tensor axis. A *voxel field* has the same shape, but channel ``i`` moves
along tensor axis ``i`` (D, H, W), in voxels. Both map points of the fixed grid to points of the moving image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = [
    "compose",
    "identity_grid",
    "integrate",
    "unit_to_voxel",
    "upsample",
    "voxel_scale",
    "voxel_to_unit",
    "warp",
]


def identity_grid(shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the sampling positions of the voxel centres.

    Returns
    -------
    Tensor
        ``(1, D, H, W, 3)``, the last axis in the order W, H, D, as grid_sample requires.
    """
    axes = [torch.linspace(-1, 1, n, device=device, dtype=dtype) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)[None]


def voxel_scale(shape: tuple[int, ...], *, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the voxels per unit along W, H and D, ``(dim - 1) / 2``; ``(1, 3, 1, 1, 1)``, to multiply unit fields."""
    scale = torch.tensor([(n - 1) / 2 for n in shape[::-1]], device=device, dtype=dtype)
    return scale.view(1, 3, 1, 1, 1)


def unit_to_voxel(field: Tensor) -> Tensor:
    """Convert a unit field to a voxel field, with channels in the order D, H, W."""
    return (field * voxel_scale(field.shape[2:], device=field.device, dtype=field.dtype)).flip(1)


def voxel_to_unit(field: Tensor) -> Tensor:
    """Convert a voxel field to a unit field, the inverse of :func:`unit_to_voxel`."""
    return field.flip(1) / voxel_scale(field.shape[2:], device=field.device, dtype=field.dtype)


def warp(image: Tensor, field: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Resample an image through a unit field.

    Parameters
    ----------
    image : Tensor
        ``(N, C, d, h, w)``. Its size can differ from the field's, because units are normalised.
    field : Tensor
        Unit field ``(N, 3, D, H, W)``.
    mode : {"bilinear", "nearest"}
        "bilinear" is trilinear for volumes.

    Returns
    -------
    Tensor
        ``(N, C, D, H, W)``, with the nearest voxel beyond the border.
    """
    if mode == "bilinear" and _kernel_serves(image, field):
        return _CompiledWarp.apply(image, field)
    grid = identity_grid(field.shape[2:], device=field.device, dtype=field.dtype)
    positions = grid + field.permute(0, 2, 3, 4, 1)
    return functional.grid_sample(image, positions, mode=mode, padding_mode="border", align_corners=True)


def _kernel_serves(image: Tensor, field: Tensor) -> bool:
    return (
        image.device.type == "cpu"
        and image.dtype == field.dtype == torch.float32
        and image.shape[:2] == (1, 1)
        and image.shape[2:] == field.shape[2:]
        and min(image.shape[2:]) > 1
        and not image.requires_grad
    )


class _CompiledWarp(torch.autograd.Function):
    """Warp of one volume on the CPU. The forward pass computes the derivative by the field."""

    @staticmethod
    def forward(ctx, image: Tensor, field: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        from nio_pydra.spatial.kernels import warp_with_slope

        volume = image.detach()[0, 0].contiguous()
        warped = torch.empty_like(volume)
        size = volume.shape if ctx.needs_input_grad[1] else (0, 0, 0)
        slope = torch.empty((3, *size), dtype=torch.float32)
        warp_with_slope(volume.numpy(), field.detach()[0].contiguous().numpy(), warped.numpy(), slope.numpy())
        ctx.save_for_backward(slope)
        return warped[None, None]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[no-untyped-def]
        (slope,) = ctx.saved_tensors
        return None, slope[None] * gradient


def compose(first: Tensor, then: Tensor) -> Tensor:
    """Return the displacement of one field followed by another: ``first(x) + then(x + first(x))``.

    Parameters
    ----------
    first, then : Tensor
        Unit fields ``(N, 3, D, H, W)``. `then` is sampled with the nearest voxel beyond the border.
    """
    if _kernels_serve(first) and not then.requires_grad:
        return _CompiledComposition.apply(first, then)
    return first + warp(then, first)


def _kernels_serve(field: Tensor) -> bool:
    return field.device.type == "cpu" and field.dtype == torch.float32 and len(field) == 1 and min(field.shape[2:]) > 1


class _CompiledComposition(torch.autograd.Function):
    """One displacement after another one, which is constant, on the CPU."""

    @staticmethod
    def forward(ctx, first: Tensor, then: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        from nio_pydra.spatial.kernels import compose_fields

        first, then = first.detach().contiguous(), then.contiguous()
        composed = torch.empty_like(first)
        compose_fields(first[0].numpy(), then[0].numpy(), composed[0].numpy())
        ctx.save_for_backward(first, then)
        return composed

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        from nio_pydra.spatial.kernels import compose_adjoint

        first, then = ctx.saved_tensors
        gradient = torch.empty_like(first)
        compose_adjoint(first[0].numpy(), then[0].numpy(), upstream[0].contiguous().numpy(), gradient[0].numpy())
        return gradient, None


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """Return the displacement of a stationary velocity field at time 1, by scaling and squaring.

    Parameters
    ----------
    velocity : Tensor
        Unit field ``(N, 3, D, H, W)``.
    steps : int
        Number of squarings; LapIRN uses 7.
    """
    field = velocity / 2**steps
    for _ in range(steps):
        field = _CompiledSquaring.apply(field) if _kernels_serve(field) else compose(field, field)
    return field


class _CompiledSquaring(torch.autograd.Function):
    """One displacement after itself, on the CPU."""

    @staticmethod
    def forward(ctx, field: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        from nio_pydra.spatial.kernels import compose_fields

        field = field.detach().contiguous()
        squared = torch.empty_like(field)
        compose_fields(field[0].numpy(), field[0].numpy(), squared[0].numpy())
        ctx.save_for_backward(field)
        return squared

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        from nio_pydra.spatial.kernels import square_adjoint

        (field,) = ctx.saved_tensors
        gradient = torch.empty_like(field)
        depth = field.shape[2]
        reach = math.ceil(float(field[0, 2].abs().max()) * (depth - 1) / 2)
        slabs = min(torch.get_num_threads(), depth)
        square_adjoint(field[0].numpy(), upstream[0].contiguous().numpy(), slabs, reach, gradient[0].numpy())
        return gradient


def upsample(field: Tensor, factor: int = 2) -> Tensor:
    """Upsample between pyramid levels, trilinearly (``align_corners=False``); unit fields keep their magnitude."""
    if factor == 1:
        return field
    if field.device.type == "cpu" and field.dtype == torch.float32:
        return _CompiledUpsampling.apply(field, factor)
    return functional.interpolate(field, scale_factor=float(factor), mode="trilinear", align_corners=False)


class _CompiledUpsampling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, field: Tensor, factor: int) -> Tensor:  # type: ignore[no-untyped-def]
        from nio_pydra.spatial.kernels import upsample_linear

        ctx.shape, ctx.factor = field.shape, factor
        fine = field.new_empty((*field.shape[:2], *(factor * n for n in field.shape[2:])))
        upsample_linear(field.detach().contiguous().flatten(0, 1).numpy(), factor, fine.flatten(0, 1).numpy())
        return fine

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        from nio_pydra.spatial.kernels import upsample_adjoint

        coarse = gradient.new_empty(ctx.shape)
        upsample_adjoint(gradient.contiguous().flatten(0, 1).numpy(), ctx.factor, coarse.flatten(0, 1).numpy())
        return coarse, None
