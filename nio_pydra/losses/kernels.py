"""Compiled CPU loops of the losses. Callers import this module inside functions (see `system.compiled`).

Arrays are C-contiguous, and float32 unless stated otherwise. Each slice is summed by one thread in a fixed order, so
results do not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np

from nio_pydra.system.compiled import compiled

__all__ = ["lncc_gradient", "lncc_products", "lncc_terms", "membrane"]


@compiled(parallel=True, fastmath={"contract", "nsz"})
def lncc_products(fixed, moving, weights, products):
    """Compute the summands of local cross-correlation: moving image, its square, its product with the fixed image.

    Parameters
    ----------
    fixed, moving : (D, H, W)
        Images.
    weights : (D, H, W)
        Weights of the voxels. An empty array stands for ones.
    products : (3, D, H, W)
        Output.
    """
    depth, height, width = moving.shape
    weighted = weights.size > 0
    for d in numba.prange(depth):
        factor = np.ones(width, np.float32)
        for h in range(height):
            if weighted:
                factor[:] = weights[d, h]
            for w in range(width):
                m = moving[d, h, w]
                product = factor[w] * m
                products[0, d, h, w] = product
                products[1, d, h, w] = product * m
                products[2, d, h, w] = product * fixed[d, h, w]


@compiled(parallel=True, fastmath={"contract", "nsz", "arcp"})
def lncc_terms(sums, mean, variance, counts, weights, epsilon, scale, energy):
    """Compute the squared correlation of all windows, and the summands of its gradient.

    Parameters
    ----------
    sums : (3, D, H, W)
        Input: window sums of `lncc_products`. Output: derivative of the loss by each window's covariance (a) and by its
        moving variance (b), and the share of the windows' means (a times the fixed mean plus 2 b times the moving one).
    mean, variance : (D, H, W)
        Mean and sum of squared deviations of the fixed image in each window.
    counts : (D, H, W) or (1, 1, 1)
        Sum of the weights in each window, or one number for all windows.
    weights : (D, H, W)
        Weights of the voxels. An empty array stands for ones.
    epsilon : float32
        Prevents division by zero in flat windows.
    scale : float32
        Factor of the loss: minus one over the sum of weights.
    energy : (D,)
        Output: weighted sum of the squared correlations in each slice, float64.
    """
    _, depth, height, width = sums.shape
    weighted = weights.size > 0
    one = np.float32(1)  # an int would convert its operands to float64
    two = np.float32(2)
    for d in numba.prange(depth):
        factor = np.ones(width, np.float32)
        per_window = np.full(width, one / counts[0, 0, 0], np.float32)
        total = np.zeros(width, np.float32)
        energy[d] = 0
        for h in range(height):
            if weighted:
                factor[:] = weights[d, h]
                for w in range(width):
                    per_window[w] = one / counts[d, h, w]
            for w in range(width):
                fixed_mean = mean[d, h, w]
                fixed_variance = variance[d, h, w]
                moving_mean = sums[0, d, h, w] * per_window[w]
                moving_variance = max(sums[1, d, h, w] - moving_mean * sums[0, d, h, w], np.float32(0))
                covariance = sums[2, d, h, w] - fixed_mean * sums[0, d, h, w]
                inverse = one / (fixed_variance * moving_variance + epsilon)
                squared = covariance * covariance * inverse
                total[w] += factor[w] * squared
                a = two * scale * factor[w] * covariance * inverse
                b = -scale * factor[w] * squared * inverse * fixed_variance
                sums[0, d, h, w] = a
                sums[1, d, h, w] = b
                sums[2, d, h, w] = a * fixed_mean + two * b * moving_mean
        for w in range(width):
            energy[d] += total[w]


@compiled(parallel=True, fastmath={"contract", "nsz"})
def lncc_gradient(sums, fixed, moving, weights, upstream, gradient):
    """Compute the gradient of local cross-correlation by the moving image.

    Parameters
    ----------
    sums : (3, D, H, W)
        Window sums of the output of `lncc_terms`.
    fixed, moving : (D, H, W)
        Images.
    weights : (D, H, W)
        Weights of the voxels. An empty array stands for ones.
    upstream : float32
        Factor of the gradient.
    gradient : (D, H, W)
        Output.
    """
    depth, height, width = moving.shape
    weighted = weights.size > 0
    two = np.float32(2)
    for d in numba.prange(depth):
        factor = np.full(width, upstream, np.float32)
        for h in range(height):
            if weighted:
                for w in range(width):
                    factor[w] = upstream * weights[d, h, w]
            for w in range(width):
                gradient[d, h, w] = factor[w] * (
                    fixed[d, h, w] * sums[0, d, h, w] + two * moving[d, h, w] * sums[1, d, h, w] - sums[2, d, h, w]
                )


# Without "reassoc" the compiler cannot sum several voxels at a time, and the loop is ten times slower.
@compiled(parallel=True, fastmath={"contract", "nsz", "reassoc"})
def membrane(field, weights, energy, gradient):
    """Compute the weighted sum of squared forward differences of a field, and its gradient.

    Parameters
    ----------
    field : (C, D, H, W)
        Any field.
    weights : (C, 3)
        Weights of the squared differences of each channel along D, H, W.
    energy : (C, D) float64
        Output: energy of the differences that start in each slice. The total is their sum.
    gradient : (C, D, H, W)
        Output: derivative of the total energy by every voxel.
    """
    channels, depth, height, width = field.shape
    for job in numba.prange(channels * depth):
        c = job // depth
        d = job % depth
        along_d = weights[c, 0]
        along_h = weights[c, 1]
        along_w = weights[c, 2]
        total = np.float64(0)
        for h in range(height):
            row = np.float32(0)
            for w in range(width):
                here = field[c, d, h, w]
                slope = np.float32(0)
                if d + 1 < depth:
                    step = field[c, d + 1, h, w] - here
                    row += along_d * step * step
                    slope -= along_d * step
                if d > 0:
                    slope += along_d * (here - field[c, d - 1, h, w])
                if h + 1 < height:
                    step = field[c, d, h + 1, w] - here
                    row += along_h * step * step
                    slope -= along_h * step
                if h > 0:
                    slope += along_h * (here - field[c, d, h - 1, w])
                if w + 1 < width:
                    step = field[c, d, h, w + 1] - here
                    row += along_w * step * step
                    slope -= along_w * step
                if w > 0:
                    slope += along_w * (here - field[c, d, h, w - 1])
                gradient[c, d, h, w] = np.float32(2) * slope
            total += row
        energy[c, d] = total
