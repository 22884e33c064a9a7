"""Compiled CPU loops of the losses. Callers import this module inside functions (see `system.compiled`).

Arrays are C-contiguous, and float32 unless stated otherwise. Each slice is summed by one thread in a fixed order, so
results do not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np

from nio_pydra.system.compiled import compiled

__all__ = ["lncc_gradient", "lncc_products", "lncc_terms", "membrane", "volume_terms"]


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


@compiled(parallel=True, fastmath={"contract", "nsz"})
def volume_terms(field, start, slope, energy, gradient):
    """Compute the volume change of a unit field and its gradient.

    It is ``(J - 1)**2 / J`` where J is at least `start`; below that it grows by `slope` for each unit that J falls.

    Derivatives are central differences, one-sided at the borders. Each job takes some slices in order, and keeps the
    derivatives by the 9 slopes for three of them at a time.

    Parameters
    ----------
    field : (3, D, H, W)
        Unit field, channel 0 along W. Every axis has at least 2 voxels.
    start, slope : float
        Determinant below which the barrier starts, and its slope.
    energy : (D,) float64
        Output: sum over the voxels of each slice.
    gradient : (3, D, H, W)
        Output: derivative of the mean over all voxels by the field.
    """
    _, depth, height, width = field.shape
    scale = np.array([(width - 1) / 2, (height - 1) / 2, (depth - 1) / 2], np.float32)
    barrier = np.float32(start)
    steepness = np.float32(slope)
    one = np.float32(1)
    half = np.float32(0.5)
    zero = np.float32(0)
    share = np.float32(1 / (depth * height * width))
    chunk = 16
    for job in numba.prange((depth + chunk - 1) // chunk):
        first = job * chunk
        last = min(first + chunk, depth)
        # Derivative of the energy by the slope of each channel along D, H, W, times the weight of the difference.
        kept = np.empty((3, 3, 3, height, width), np.float32)
        slopes = np.empty((3, 3, width), np.float32)
        for d in range(max(first - 1, 0), min(last + 1, depth) + 1):
            if d < min(last + 1, depth):
                slot = d % 3
                below_d = max(d - 1, 0)
                above_d = min(d + 1, depth - 1)
                weight_d = half if above_d - below_d == 2 else one
                total = np.float64(0)
                for h in range(height):
                    below_h = max(h - 1, 0)
                    above_h = min(h + 1, height - 1)
                    weight_h = half if above_h - below_h == 2 else one
                    for c in range(3):
                        factor_d = weight_d * scale[c]
                        factor_h = weight_h * scale[c]
                        factor_w = half * scale[c]
                        for w in range(width):
                            slopes[c, 0, w] = factor_d * (field[c, above_d, h, w] - field[c, below_d, h, w])
                            slopes[c, 1, w] = factor_h * (field[c, d, above_h, w] - field[c, d, below_h, w])
                        for w in range(1, width - 1):
                            slopes[c, 2, w] = factor_w * (field[c, d, h, w + 1] - field[c, d, h, w - 1])
                        slopes[c, 2, 0] = scale[c] * (field[c, d, h, 1] - field[c, d, h, 0])
                        slopes[c, 2, width - 1] = scale[c] * (field[c, d, h, width - 1] - field[c, d, h, width - 2])
                    row = zero
                    for w in range(width):
                        # Rows are the components along D, H, W, which are channels 2, 1, 0.
                        d_d = slopes[2, 0, w] + one
                        d_h = slopes[2, 1, w]
                        d_w = slopes[2, 2, w]
                        h_d = slopes[1, 0, w]
                        h_h = slopes[1, 1, w] + one
                        h_w = slopes[1, 2, w]
                        w_d = slopes[0, 0, w]
                        w_h = slopes[0, 1, w]
                        w_w = slopes[0, 2, w] + one
                        c_dd = h_h * w_w - h_w * w_h
                        c_dh = h_w * w_d - h_d * w_w
                        c_dw = h_d * w_h - h_h * w_d
                        determinant = d_d * c_dd + d_h * c_dh + d_w * c_dw
                        above = max(determinant, barrier)
                        missing = above - determinant
                        inverse = one / above
                        change = above - one
                        row += change * change * inverse + steepness * missing
                        by = -steepness if missing > zero else one - inverse * inverse
                        by_d = weight_d * by
                        by_h = weight_h * by
                        by_w = half * by
                        kept[slot, 2, 0, h, w] = by_d * c_dd
                        kept[slot, 2, 1, h, w] = by_h * c_dh
                        kept[slot, 2, 2, h, w] = by_w * c_dw
                        kept[slot, 1, 0, h, w] = by_d * (d_w * w_h - d_h * w_w)
                        kept[slot, 1, 1, h, w] = by_h * (d_d * w_w - d_w * w_d)
                        kept[slot, 1, 2, h, w] = by_w * (d_h * w_d - d_d * w_h)
                        kept[slot, 0, 0, h, w] = by_d * (d_h * h_w - d_w * h_h)
                        kept[slot, 0, 1, h, w] = by_h * (d_w * h_d - d_d * h_w)
                        kept[slot, 0, 2, h, w] = by_w * (d_d * h_h - d_h * h_d)
                    for c in range(3):
                        for w in (0, width - 1):  # the one-sided differences have weight 1
                            kept[slot, c, 2, h, w] *= np.float32(2)
                    total += row
                if first <= d < last:
                    energy[d] = total
            e = d - 1  # the slice whose neighbours are both known now
            if first <= e < last:
                here = e % 3
                before = (e - 1) % 3
                after = (e + 1) % 3
                for c in range(3):
                    factor = scale[c] * share
                    for h in range(height):
                        out = gradient[c, e, h]
                        along_d = kept[here, c, 0, h]
                        along_h = kept[here, c, 1, h]
                        along_w = kept[here, c, 2, h]
                        for w in range(1, width - 1):
                            out[w] = along_w[w - 1] - along_w[w + 1]
                        out[0] = -along_w[0] - along_w[1]
                        out[width - 1] = along_w[width - 2] + along_w[width - 1]
                        if h > 0:
                            other = kept[here, c, 1, h - 1]
                            for w in range(width):
                                out[w] += other[w]
                        else:
                            for w in range(width):
                                out[w] -= along_h[w]
                        if h < height - 1:
                            other = kept[here, c, 1, h + 1]
                            for w in range(width):
                                out[w] -= other[w]
                        else:
                            for w in range(width):
                                out[w] += along_h[w]
                        if e > 0:
                            other = kept[before, c, 0, h]
                            for w in range(width):
                                out[w] += other[w]
                        else:
                            for w in range(width):
                                out[w] -= along_d[w]
                        if e < depth - 1:
                            other = kept[after, c, 0, h]
                            for w in range(width):
                                out[w] -= other[w]
                        else:
                            for w in range(width):
                                out[w] += along_d[w]
                        for w in range(width):
                            out[w] *= factor
