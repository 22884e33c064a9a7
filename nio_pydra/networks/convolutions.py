"""Two convolutions in a row on a large volume, in little memory.

At full resolution a level's encoder and head hold a network's largest tensors. Left to autograd, the gradient of a
convolution's weights makes transposed copies of both its operands, and every intermediate result stays in memory.
Here the backward pass works slab by slab, which costs no time and needs no copies, joined inputs are never copied
into one tensor, and a cheap intermediate result is computed again instead of kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["two_convolutions"]

SLAB_VOXELS = 400_000  # large enough to keep every core busy, small beside the volume
LAYOUT = torch.channels_last_3d  # slabs of it are contiguous


def two_convolutions(
    inputs: Sequence[Tensor],
    first: Tensor,
    second: Tensor,
    slope: float,
    *,
    keep_hidden: bool = False,
    activate_inputs: bool = False,
) -> Tensor:
    """Join inputs along their channels, then convolve, LeakyReLU, convolve; stride 1, zero padding, no bias.

    Parameters
    ----------
    inputs : sequence of Tensor
        ``(N, C_i, D, H, W)``.
    first, second : Tensor
        Kernels ``(C', sum of C_i, 3, 3, 3)`` and ``(C'', C', 3, 3, 3)``.
    slope : float
        Of the LeakyReLU for negative values.
    keep_hidden : bool
        Whether the result of the first convolution is kept for the backward pass, or computed again.
    activate_inputs : bool
        Whether the inputs pass a LeakyReLU first.

    Returns
    -------
    Tensor
        ``(N, C'', D, H, W)``.
    """
    if inputs[0].device.type != "cpu":
        joined = inputs[0] if len(inputs) == 1 else torch.cat(tuple(inputs), dim=1)
        joined = functional.leaky_relu(joined, slope) if activate_inputs else joined
        hidden = functional.conv3d(joined, first, padding=1)
        return functional.conv3d(functional.leaky_relu_(hidden, slope), second, padding=1)
    if torch.is_autocast_enabled("cpu"):
        inputs = [x.to(torch.get_autocast_dtype("cpu")) for x in inputs]
    with torch.autocast("cpu", enabled=False):
        result: Tensor = _TwoConvolutions.apply(first, second, slope, keep_hidden, activate_inputs, *inputs)
        return result


class _TwoConvolutions(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first, second, slope, keep_hidden, activate_inputs, *inputs):  # type: ignore[no-untyped-def]
        inputs = tuple(x.contiguous(memory_format=LAYOUT) for x in inputs)
        ctx.save_for_backward(first, second, *inputs)
        ctx.slope, ctx.activate_inputs = slope, activate_inputs
        hidden = _hidden(_activated(ctx, inputs), first, slope)
        # An attribute, because it can be let go in the middle of the backward pass.
        ctx.hidden = hidden if keep_hidden else None
        return functional.conv3d(hidden, _cast(second, hidden), padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        first, second, *inputs = ctx.saved_tensors
        activated = _activated(ctx, inputs)
        hidden = _hidden(activated, first, ctx.slope) if ctx.hidden is None else ctx.hidden
        ctx.hidden = None
        gradient = gradient.contiguous(memory_format=LAYOUT)
        by_second = _by_weights(gradient, hidden, second)
        by_hidden = _through_activation(_by_input(gradient, second), hidden, ctx.slope)
        del hidden
        parts = _split(first, inputs)
        by_first = torch.cat([_by_weights(by_hidden, x, w) for x, w in zip(activated, parts, strict=True)], dim=1)
        by_inputs: list[Tensor | None] = []
        for wanted, x, weights in zip(ctx.needs_input_grad[5:], activated, parts, strict=True):
            by_input = _by_input(by_hidden, weights) if wanted else None
            if by_input is not None and ctx.activate_inputs:
                by_input = _through_activation(by_input, x, ctx.slope)
            by_inputs.append(by_input)
        return by_first, by_second, None, None, None, *by_inputs


def _activated(ctx, inputs: Sequence[Tensor]) -> Sequence[Tensor]:  # type: ignore[no-untyped-def]
    return [functional.leaky_relu(x, ctx.slope) for x in inputs] if ctx.activate_inputs else inputs


def _through_activation(gradient: Tensor, result: Tensor, slope: float) -> Tensor:
    """Gradient by what went into a LeakyReLU, from that by its result; written over the latter."""
    torch.ops.aten.leaky_relu_backward.grad_input(gradient, result, slope, True, grad_input=gradient)
    return gradient


def _cast(weights: Tensor, like: Tensor) -> Tensor:
    return weights.to(like.dtype).contiguous(memory_format=LAYOUT)


def _split(weights: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return weights.split([x.shape[1] for x in inputs], dim=1)


def _hidden(inputs: Sequence[Tensor], first: Tensor, slope: float) -> Tensor:
    parts = [_cast(w, x) for w, x in zip(_split(first, inputs), inputs, strict=True)]
    hidden = functional.conv3d(inputs[0], parts[0], padding=1)
    for x, weights in zip(inputs[1:], parts[1:], strict=True):
        for slab in _slabs(x):
            hidden[:, :, slab] += functional.conv3d(_with_halo(x, slab), weights, padding=(0, 1, 1))
    return functional.leaky_relu_(hidden, slope)


def _slabs(volume: Tensor) -> list[slice]:
    depth, height, width = volume.shape[2:]
    thickness = max(1, SLAB_VOXELS // (height * width))
    return [slice(d, min(d + thickness, depth)) for d in range(0, depth, thickness)]


def _with_halo(volume: Tensor, slab: slice) -> Tensor:
    """A slab and the slices beside it, zeros beyond the volume; a view where nothing has to be added."""
    depth = volume.shape[2]
    part = volume[:, :, max(slab.start - 1, 0) : slab.stop + 1]
    missing = (0, 0, 0, 0, int(slab.start == 0), int(slab.stop == depth))
    return functional.pad(part, missing).contiguous(memory_format=LAYOUT) if any(missing) else part


def _by_weights(gradient: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """Gradient of a convolution by its weights, summed in their precision."""
    total = torch.zeros_like(weights)
    cast = _cast(weights, x)
    for slab in _slabs(x):
        total += torch.ops.aten.convolution_backward(
            gradient[:, :, slab], _with_halo(x, slab), cast, None, [1] * 3, [0, 1, 1], [1] * 3, False, [0] * 3, 1,
            [False, True, False],
        )[1]  # fmt: skip
    return total


def _by_input(gradient: Tensor, weights: Tensor) -> Tensor:
    """Gradient of a convolution by its input: a convolution with the mirrored weights."""
    mirrored = _cast(weights.flip(2, 3, 4).transpose(0, 1), gradient)
    return functional.conv3d(gradient, mirrored, padding=1)
