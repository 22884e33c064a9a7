"""Two convolutions in a row on a large volume, in little time and memory.

At full resolution a level's encoder and head hold a network's largest tensors. Left to autograd, the gradient of a
convolution's weights makes transposed copies of both its operands, and every intermediate result stays in memory.
Here the backward pass works slab by slab, which costs no time and needs no copies, joined inputs are never copied
into one tensor, and activated inputs are computed again instead of kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["after_upsampling", "two_convolutions"]

SLAB_VOXELS = 400_000  # large enough to keep every core busy, small beside the volume
SLICE_VOXELS = 4000  # of a slice for each slice of a slab, at most: see `_slabs`
LAYOUT = torch.channels_last_3d  # slabs of it are contiguous
LANES = 16  # output channels that a CPU's convolution computes at once, wanted or not


def after_upsampling(up: Tensor, kernel: Tensor) -> Tensor:
    """Kernel that does at once what a transposed convolution and a convolution of its result do in turn.

    Nothing but the work changes, for both are linear: 8 products for each output voxel and pair of channels instead
    of 27, and no upsampled volume in between.

    Parameters
    ----------
    up : Tensor
        Of the transposed convolution, stride 2, ``(C, C', 2, 2, 2)``.
    kernel : Tensor
        Of the convolution, zero-padded, ``(C'', C', 3, 3, 3)``.

    Returns
    -------
    Tensor
        ``(C, C'', 4, 4, 4)``, for a transposed convolution of stride 2 and padding 1.
    """
    with torch.autocast(up.device.type, enabled=False):
        return functional.conv3d(up, kernel, padding=2)


def two_convolutions(
    inputs: Sequence[Tensor], first: Sequence[Tensor], second: Tensor, slope: float, *, activate_inputs: bool = False
) -> Tensor:
    """Convolve every input, add up, LeakyReLU, convolve; no bias.

    Parameters
    ----------
    inputs : sequence of Tensor
        ``(N, C_i, D, H, W)``; the first one has half that size where its kernel upsamples.
    first : sequence of Tensor
        A kernel for each: ``(C', C_i, 3, 3, 3)``, zero-padded, or ``(C_i, C', 4, 4, 4)`` of `after_upsampling`.
    second : Tensor
        ``(C'', C', 3, 3, 3)``, zero-padded.
    slope : float
        Of the LeakyReLU for negative values.
    activate_inputs : bool
        Whether the inputs pass a LeakyReLU first.

    Returns
    -------
    Tensor
        ``(N, C'', D, H, W)``.
    """
    if inputs[0].device.type != "cpu":
        return _left_to_autograd(inputs, first, second, slope, activate_inputs)
    if torch.is_autocast_enabled("cpu"):
        inputs = [x.to(torch.get_autocast_dtype("cpu")) for x in inputs]
    with torch.autocast("cpu", enabled=False):
        result: Tensor = _TwoConvolutions.apply(second, slope, activate_inputs, len(inputs), *inputs, *first)
        return result


def _left_to_autograd(
    inputs: Sequence[Tensor], first: Sequence[Tensor], second: Tensor, slope: float, activate_inputs: bool
) -> Tensor:
    activated = _activated(inputs, slope, activate_inputs)
    parts = [_convolve_or_upsample(x, kernel) for x, kernel in zip(activated, first, strict=True)]
    return functional.conv3d(functional.leaky_relu_(sum(parts[1:], parts[0]), slope), second, padding=1)


def _convolve_or_upsample(x: Tensor, kernel: Tensor) -> Tensor:
    if _upsamples(kernel):
        return functional.conv_transpose3d(x, kernel, stride=2, padding=1)
    return functional.conv3d(x, kernel, padding=1)


def _activated(inputs: Sequence[Tensor], slope: float, activate: bool) -> Sequence[Tensor]:
    return [functional.leaky_relu(x, slope) for x in inputs] if activate else inputs


def _upsamples(kernel: Tensor) -> bool:
    return kernel.shape[-1] == 4


class _TwoConvolutions(torch.autograd.Function):
    @staticmethod
    def forward(ctx, second, slope, activate_inputs, count, *operands):  # type: ignore[no-untyped-def]
        inputs = [x.contiguous(memory_format=LAYOUT) for x in operands[:count]]
        first = operands[count:]
        hidden = _hidden(_activated(inputs, slope, activate_inputs), first, slope)
        ctx.save_for_backward(second, *inputs, *first)
        ctx.slope, ctx.activate_inputs, ctx.count = slope, activate_inputs, count
        # An attribute, because it can be let go in the middle of the backward pass; a second pass makes it again.
        ctx.hidden = hidden
        return _convolve_narrow(hidden, second)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        second, *operands = ctx.saved_tensors
        inputs, first = operands[: ctx.count], operands[ctx.count :]
        activated = _activated(inputs, ctx.slope, ctx.activate_inputs)
        hidden = _hidden(activated, first, ctx.slope) if ctx.hidden is None else ctx.hidden
        ctx.hidden = None
        gradient = gradient.contiguous(memory_format=LAYOUT)
        by_second = _by_kernel(gradient, hidden, second)
        by_hidden = _through_activation(_by_input(gradient, second), hidden, ctx.slope)
        del hidden
        by_first = [_by_kernel(by_hidden, x, kernel) for x, kernel in zip(activated, first, strict=True)]
        by_inputs: list[Tensor | None] = []
        for wanted, x, kernel in zip(ctx.needs_input_grad[4:], activated, first, strict=False):
            by_input = _by_input(by_hidden, kernel) if wanted else None
            if by_input is not None and ctx.activate_inputs:
                by_input = _through_activation(by_input, x, ctx.slope)
            by_inputs.append(by_input)
        return by_second, None, None, None, *by_inputs, *by_first


def _hidden(inputs: Sequence[Tensor], kernels: Sequence[Tensor], slope: float) -> Tensor:
    """What lies between the two convolutions, activated."""
    casts = [_cast(kernel, inputs[0]) for kernel in kernels]
    hidden = _convolve_or_upsample(inputs[0], casts[0])
    for x, kernel in zip(inputs[1:], casts[1:], strict=True):
        for slab in _slabs(x, SLAB_VOXELS):
            hidden[:, :, slab] += functional.conv3d(_with_halo(x, slab), kernel, padding=(0, 1, 1))
    return functional.leaky_relu_(hidden, slope)


def _through_activation(gradient: Tensor, result: Tensor, slope: float) -> Tensor:
    """Gradient by what went into a LeakyReLU, from that by its result; written over the latter."""
    torch.ops.aten.leaky_relu_backward.grad_input(gradient, result, slope, True, grad_input=gradient)
    return gradient


def _cast(kernel: Tensor, like: Tensor) -> Tensor:
    return kernel.to(like.dtype).contiguous(memory_format=LAYOUT)


def _mirrored(kernel: Tensor) -> Tensor:
    """Kernel of the way back: inputs and outputs exchanged, every axis reversed."""
    return kernel.flip(2, 3, 4).transpose(0, 1)


def _convolve_narrow(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve with a zero-padded 3x3x3 kernel.

    A few output channels take as long as `LANES` of them. So up to four neighbouring voxels are computed as channels
    of one, with a kernel that contains the small one at as many places.
    """
    outputs, height, width = len(kernel), *x.shape[3:]
    rows = 2 if 4 * outputs <= LANES and height % 2 == 0 else 1
    columns = 2 if 2 * outputs <= LANES and width % 2 == 0 else 1
    places = [(row, column) for row in range(rows) for column in range(columns)]
    kernels = [functional.pad(kernel, (c, columns - 1 - c, r, rows - 1 - r)) for r, c in places]
    found = functional.conv3d(x, _cast(torch.cat(kernels), x), stride=(1, rows, columns), padding=1)
    if len(places) == 1:
        return found
    apart = torch.empty((len(x), outputs, *x.shape[2:]), dtype=x.dtype, memory_format=LAYOUT)
    voxels = apart.permute(0, 2, 3, 4, 1).unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
    voxels.copy_(found.permute(0, 2, 3, 4, 1).unflatten(-1, (rows, columns, outputs)).transpose(3, 4))
    return apart


def _by_input(gradient: Tensor, kernel: Tensor) -> Tensor:
    """Gradient of a convolution by its input."""
    if _upsamples(kernel):
        return functional.conv3d(gradient, _cast(kernel, gradient), stride=2, padding=1)
    return _convolve_narrow(gradient, _mirrored(kernel))


def _by_kernel(gradient: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    """Gradient of a convolution by its kernel."""
    if _upsamples(kernel):
        return _correlate(x, gradient, kernel, stride=2)
    if gradient.shape[1] >= x.shape[1]:
        return _correlate(gradient, x, kernel)
    # Exchanged, because torch takes several times as long where the result has fewer channels than the input.
    return _mirrored(_correlate(x, gradient, kernel.transpose(0, 1)))


def _correlate(result: Tensor, x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """Gradient by the kernel of a convolution from x to a result, from the gradient by that result.

    Parameters
    ----------
    result : Tensor
        The gradient, ``(N, C', D, H, W)``.
    x : Tensor
        ``(N, C, stride D, stride H, stride W)``.
    kernel : Tensor
        ``(C', C, 2 + stride, 2 + stride, 2 + stride)``; only its shape and precision count.
    stride : int
        1 or 2.
    """
    total = torch.zeros_like(kernel)
    cast = _cast(kernel, x)
    missing = _fewest_slices(result) - result.shape[2]
    if missing > 0:  # zeros in the result add nothing, whatever they meet
        result, x = (
            functional.pad(volume, (0, 0, 0, 0, 0, count)).contiguous(memory_format=LAYOUT)
            for volume, count in ((result, missing), (x, stride * missing))
        )
    for slab in _slabs(result, SLAB_VOXELS // stride**3):
        part = _with_halo(x, slice(stride * slab.start, stride * slab.stop))
        total += torch.ops.aten.convolution_backward(
            result[:, :, slab], part, cast, None, [stride] * 3, [0, 1, 1], [1] * 3, False, [0] * 3, 1,
            [False, True, False],
        )[1]  # fmt: skip
    return total


def _slabs(volume: Tensor, voxels: int) -> list[slice]:
    """Parts of at least about so many voxels along the first axis, of equal thickness.

    None is thin for the size of its slices. On processors with AMX, oneDNN 3.12 (torch 2.13) crashes or hangs in the
    gradient of a bfloat16 convolution by its kernel, where slices are few for their size: 6 of 160 x 200 voxels, or 8
    of 256 x 256.
    """
    depth, height, width = volume.shape[2:]
    count = max(1, depth // max(voxels // (height * width), _fewest_slices(volume)))
    ends = [number * depth // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _fewest_slices(volume: Tensor) -> int:
    """Smallest thickness of a slab: see `_slabs`."""
    return -(-volume.shape[3] * volume.shape[4] // SLICE_VOXELS)


def _with_halo(volume: Tensor, slab: slice) -> Tensor:
    """A slab and the slices beside it, zeros beyond the volume; a view where nothing has to be added."""
    depth = volume.shape[2]
    part = volume[:, :, max(slab.start - 1, 0) : slab.stop + 1]
    missing = (0, 0, 0, 0, int(slab.start == 0), int(slab.stop == depth))
    return functional.pad(part, missing).contiguous(memory_format=LAYOUT) if any(missing) else part
