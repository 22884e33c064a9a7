"""Local normalised cross-correlation (LNCC), with an explicit gradient.

This is the squared correlation of two images in a cube around every voxel, as in LapIRN and NIO. The explicit gradient
needs three filters forward and three backward, where autograd would record five.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nio_pydra.spatial.windows import window_sums

__all__ = ["FixedStatistics", "lncc"]

EPSILON = 1e-5  # of LapIRN; prevents division by zero in flat windows


@dataclass(frozen=True)
class FixedStatistics:
    """Statistics of the fixed image for LNCC, computed once per pair.

    Attributes
    ----------
    image : Tensor
        ``(N, 1, D, H, W)``.
    weights : Tensor or None
        Weight of each voxel, same shape. 0 excludes a voxel from every window and from the mean.
    count, mean, variance : Tensor
        Sum of weights, mean of the image, and sum of its squared deviations in each window.
    window : int
        Edge of the windows in voxels, odd.
    """

    image: Tensor
    weights: Tensor | None
    count: Tensor
    mean: Tensor
    variance: Tensor
    window: int

    @classmethod
    def of(cls, image: Tensor, window: int = 7, weights: Tensor | None = None) -> FixedStatistics:
        """Compute the statistics.

        Raises
        ------
        ValueError
            If the window is even, or the weights are zero everywhere.
        """
        if window % 2 == 0 or window < 1:
            raise ValueError(f"window is {window}: expected an odd number")
        image = image.detach()
        if weights is None:
            count = torch.tensor(float(window**3), dtype=image.dtype, device=image.device)
            sums = window_sums(torch.cat([image, image * image]), window)
        else:
            if not bool((weights > 0).any()):
                raise ValueError("the weights are zero everywhere: expected at least one voxel to compare")
            weighted = weights * image
            sums = window_sums(torch.cat([weighted, weighted * image, weights]), window)
            count = sums[2 * len(image) :].clamp_min(1e-3)  # windows without any weight
        mean = sums[: len(image)] / count
        variance = (sums[len(image) : 2 * len(image)] - mean * sums[: len(image)]).clamp_min(0)
        return cls(image, weights, count, mean, variance, window)


def lncc(fixed: Tensor | FixedStatistics, warped: Tensor, window: int = 7, weights: Tensor | None = None) -> Tensor:
    """Return the negative mean squared local cross-correlation (lower is better; -1 for equal images).

    Parameters
    ----------
    fixed : Tensor or FixedStatistics
        ``(N, 1, D, H, W)``, or its statistics, which then also give `window` and `weights`.
    warped : Tensor
        Moving image on the fixed grid, same shape. Only this one gets a gradient.
    window : int
        Edge of the windows in voxels, odd.
    weights : Tensor, optional
        See :class:`FixedStatistics`.

    Returns
    -------
    Tensor
        Scalar.

    Raises
    ------
    ValueError
        If the images differ in shape, the window is even, or the weights are zero everywhere.

    Notes
    -----
    Mok et al. 2023, Eq. 3 (window 7). Without weights the sums are zero-padded and divided by the size of the whole
    window, as in the authors' LapIRN.
    """
    if not isinstance(fixed, FixedStatistics):
        fixed = FixedStatistics.of(fixed, window, weights)
    if warped.shape != fixed.image.shape:
        raise ValueError(
            f"warped has shape {tuple(warped.shape)}: expected the fixed image's {tuple(fixed.image.shape)}"
        )
    compiled = warped.device.type == "cpu" and warped.dtype == torch.float32 and len(warped) == 1
    return (_CompiledLNCC if compiled else _LNCC).apply(warped, fixed)


class _LNCC(torch.autograd.Function):
    @staticmethod
    def forward(ctx, warped: Tensor, fixed: FixedStatistics) -> Tensor:  # type: ignore[no-untyped-def]
        moving = warped.detach()
        n = len(moving)
        weighted = moving if fixed.weights is None else moving * fixed.weights
        sums = window_sums(torch.cat([weighted, weighted * moving, weighted * fixed.image]), fixed.window)
        mean = sums[:n] / fixed.count
        variance = (sums[n : 2 * n] - mean * sums[:n]).clamp_min_(0)
        cross = sums[2 * n :] - fixed.mean * sums[:n]
        inverse = (fixed.variance * variance).add_(EPSILON).reciprocal_()
        by_cross = cross * inverse
        squared = cross * by_cross
        if fixed.weights is None:
            value = -squared.mean()
            scale: Tensor | float = -1.0 / squared.numel()
        else:
            total = fixed.weights.sum()
            value = -(squared * fixed.weights).sum() / total
            scale = -fixed.weights / total
        if ctx.needs_input_grad[0]:
            # Derivatives of the loss by each window's covariance and by its moving variance.
            a = by_cross.mul_(2 * scale) if isinstance(scale, float) else by_cross * (2 * scale)
            b = squared.mul_(inverse).mul_(fixed.variance).mul_(-scale)
            ctx.save_for_backward(moving, a, b, mean)
            ctx.fixed = fixed
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        moving, a, b, mean = ctx.saved_tensors
        fixed = ctx.fixed
        n = len(moving)
        sums = window_sums(torch.cat([a, b, a * fixed.mean + 2 * b * mean]), fixed.window)
        gradient = fixed.image * sums[:n]
        gradient.addcmul_(moving, sums[n : 2 * n], value=2).sub_(sums[2 * n :])
        if fixed.weights is not None:
            gradient *= fixed.weights
        return gradient.mul_(upstream), None


class _CompiledLNCC(torch.autograd.Function):
    """LNCC of one pair in float32 on the CPU, with few passes over memory."""

    @staticmethod
    def forward(ctx, warped: Tensor, fixed: FixedStatistics) -> Tensor:  # type: ignore[no-untyped-def]
        from nio_pydra.losses.kernels import lncc_products, lncc_terms

        image, moving, mean, variance = (_volume(x) for x in (fixed.image, warped, fixed.mean, fixed.variance))
        weights = moving.new_empty((0, 0, 0)) if fixed.weights is None else _volume(fixed.weights)
        total = moving.numel() if fixed.weights is None else float(weights.sum(dtype=torch.float64))
        counts = fixed.count.reshape(1, 1, 1) if fixed.weights is None else _volume(fixed.count)
        products = moving.new_empty((3, *moving.shape))
        lncc_products(image.numpy(), moving.numpy(), weights.numpy(), products.numpy())
        terms = window_sums(products[None], fixed.window)[0]
        energy = np.empty(len(moving))
        lncc_terms(
            terms.numpy(), mean.numpy(), variance.numpy(), counts.numpy(), weights.numpy(),
            np.float32(EPSILON), np.float32(-1 / total), energy,
        )  # fmt: skip
        ctx.save_for_backward(terms, image, moving, weights)
        ctx.window = fixed.window
        return warped.new_tensor(-energy.sum() / total)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        from nio_pydra.losses.kernels import lncc_gradient

        terms, image, moving, weights = ctx.saved_tensors
        sums = window_sums(terms[None], ctx.window)[0]
        gradient = torch.empty_like(moving)
        lncc_gradient(
            sums.numpy(), image.numpy(), moving.numpy(), weights.numpy(), np.float32(upstream.item()), gradient.numpy()
        )
        return gradient[None, None], None


def _volume(image: Tensor) -> Tensor:
    """Return the only volume of ``(1, 1, D, H, W)``."""
    return image.detach()[0, 0].contiguous()
