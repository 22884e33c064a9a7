"""Compiled CPU loops behind the torch functions of this package.

numba compiles each on its first call and keeps it in its cache on disk; importing this module costs the import of
numba, so callers import it late. Arrays are C-contiguous, float32 unless said otherwise. Each output voxel is
written by one thread and summed in a fixed order, so results do not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np

__all__ = [
    "affine_points",
    "box_sum",
    "invert_displacement",
    "membrane",
    "sample_linear",
    "set_kernel_threads",
    "smallest_determinants",
    "smoothed_at",
    "warp_with_slope",
]


def set_kernel_threads(threads: int) -> None:
    """Limit the threads of all kernels (never more than numba started with)."""
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


@numba.njit(parallel=True, cache=True, fastmath={"contract", "nsz", "arcp"})
def warp_with_slope(image, field, warped, slope):
    """Trilinear warp of one volume by a unit field, and its derivative with respect to that field.

    Parameters
    ----------
    image : (D, H, W)
        Moving image.
    field : (3, D, H, W)
        Unit field on the same grid, channel 0 along W.
    warped : (D, H, W)
        Output. Beyond the border the nearest voxel counts.
    slope : (3, D, H, W)
        Output: derivative of `warped` by each channel of `field`; zero where clamped. Pass an array of no voxels to
        skip it.
    """
    depth, height, width = image.shape
    wants_slope = slope.shape[1] > 0
    per_z = np.float32((depth - 1) / 2)
    per_y = np.float32((height - 1) / 2)
    per_x = np.float32((width - 1) / 2)
    one = np.float32(1)
    zero = np.float32(0)
    for d in numba.prange(depth):
        for h in range(height):
            for w in range(width):
                z = d + field[2, d, h, w] * per_z
                y = h + field[1, d, h, w] * per_y
                x = w + field[0, d, h, w] * per_x
                free_z = one if (z > 0 and z < depth - 1) else zero
                free_y = one if (y > 0 and y < height - 1) else zero
                free_x = one if (x > 0 and x < width - 1) else zero
                z = min(max(z, zero), np.float32(depth - 1))
                y = min(max(y, zero), np.float32(height - 1))
                x = min(max(x, zero), np.float32(width - 1))
                z0 = min(int(z), depth - 2)
                y0 = min(int(y), height - 2)
                x0 = min(int(x), width - 2)
                fz = np.float32(z - z0)
                fy = np.float32(y - y0)
                fx = np.float32(x - x0)
                a = image[z0, y0, x0]
                b = image[z0, y0 + 1, x0]
                c = image[z0 + 1, y0, x0]
                e = image[z0 + 1, y0 + 1, x0]
                dx00 = image[z0, y0, x0 + 1] - a
                dx01 = image[z0, y0 + 1, x0 + 1] - b
                dx10 = image[z0 + 1, y0, x0 + 1] - c
                dx11 = image[z0 + 1, y0 + 1, x0 + 1] - e
                low = a + fx * dx00
                low_step = b + fx * dx01 - low
                high = c + fx * dx10
                high_step = e + fx * dx11 - high
                bottom = low + fy * low_step
                rise = high + fy * high_step - bottom
                warped[d, h, w] = bottom + fz * rise
                if wants_slope:
                    dx_low = dx00 + fy * (dx01 - dx00)
                    dx_high = dx10 + fy * (dx11 - dx10)
                    slope[0, d, h, w] = free_x * per_x * (dx_low + fz * (dx_high - dx_low))
                    slope[1, d, h, w] = free_y * per_y * (low_step + fz * (high_step - low_step))
                    slope[2, d, h, w] = free_z * per_z * rise


@numba.njit(parallel=True, cache=True)
def sample_linear(volumes, positions, out):
    """Sample volumes trilinearly, as ITK does: clamped within half a voxel of the border, zero beyond.

    Parameters
    ----------
    volumes : (C, X, Y, Z)
        Any real dtype.
    positions : (N, 3) float64
        In voxels.
    out : (C, N) float64
        Output.
    """
    channels, nx, ny, nz = volumes.shape
    for i in numba.prange(len(positions)):
        x, y, z = positions[i]
        if not (-0.5 <= x <= nx - 0.5 and -0.5 <= y <= ny - 0.5 and -0.5 <= z <= nz - 0.5):
            for c in range(channels):
                out[c, i] = 0.0
            continue
        x = min(max(x, 0.0), nx - 1.0)
        y = min(max(y, 0.0), ny - 1.0)
        z = min(max(z, 0.0), nz - 1.0)
        x0, y0, z0 = int(x), int(y), int(z)
        x1, y1, z1 = min(x0 + 1, nx - 1), min(y0 + 1, ny - 1), min(z0 + 1, nz - 1)
        fx, fy, fz = x - x0, y - y0, z - z0
        for c in range(channels):
            v = volumes[c]
            low = (1 - fy) * ((1 - fz) * v[x0, y0, z0] + fz * v[x0, y0, z1]) + fy * (
                (1 - fz) * v[x0, y1, z0] + fz * v[x0, y1, z1]
            )
            high = (1 - fy) * ((1 - fz) * v[x1, y0, z0] + fz * v[x1, y0, z1]) + fy * (
                (1 - fz) * v[x1, y1, z0] + fz * v[x1, y1, z1]
            )
            out[c, i] = (1 - fx) * low + fx * high


@numba.njit(parallel=True, cache=True)
def affine_points(matrix, points, out):
    """Apply the upper three rows of a 4x4 matrix to points ``(N, 3)``; all float64."""
    for i in numba.prange(len(points)):
        x, y, z = points[i]
        for row in range(3):
            out[i, row] = matrix[row, 0] * x + matrix[row, 1] * y + matrix[row, 2] * z + matrix[row, 3]


@numba.njit(cache=True)
def _displacement_and_slopes(field, p, value, slopes):
    """Trilinear displacement at a voxel position, clamped to the grid, and its derivatives ``slopes[i, axis]``."""
    base = np.empty(3, np.int64)
    frac = np.empty(3)
    for a in range(3):
        q = min(max(p[a], 0.0), field.shape[a + 1] - 1.0)
        base[a] = min(int(q), field.shape[a + 1] - 2)
        frac[a] = q - base[a]
    x, y, z = base
    fx, fy, fz = frac
    for i in range(3):
        v = field[i]
        c00 = v[x, y, z] + fz * (v[x, y, z + 1] - v[x, y, z])
        c01 = v[x, y + 1, z] + fz * (v[x, y + 1, z + 1] - v[x, y + 1, z])
        c10 = v[x + 1, y, z] + fz * (v[x + 1, y, z + 1] - v[x + 1, y, z])
        c11 = v[x + 1, y + 1, z] + fz * (v[x + 1, y + 1, z + 1] - v[x + 1, y + 1, z])
        d0 = v[x, y, z + 1] - v[x, y, z]
        d1 = v[x, y + 1, z + 1] - v[x, y + 1, z]
        d2 = v[x + 1, y, z + 1] - v[x + 1, y, z]
        d3 = v[x + 1, y + 1, z + 1] - v[x + 1, y + 1, z]
        near, far = c00 + fy * (c01 - c00), c10 + fy * (c11 - c10)
        value[i] = near + fx * (far - near)
        slopes[i, 0] = far - near
        slopes[i, 1] = (1 - fx) * (c01 - c00) + fx * (c11 - c10)
        slopes[i, 2] = (1 - fx) * ((1 - fy) * d0 + fy * d1) + fx * ((1 - fy) * d2 + fy * d3)


@numba.njit(parallel=True, cache=True)
def invert_displacement(field, inverse, steps, tolerance):
    """Solve ``x + u(x) = y`` at every voxel y; ``inverse = x - y``.

    Damped Newton steps, and plain fixed-point steps where the field is folded or nearly so. A step that does not come
    closer is halved.

    Parameters
    ----------
    field, inverse : (3, X, Y, Z)
        Displacements in voxels, component i along axis i; input and output.
    steps : int
        Most evaluations per voxel.
    tolerance : float
        Distance in voxels at which a point counts as found.
    """
    _, nx, ny, nz = field.shape
    for xi in numba.prange(nx):
        u = np.empty(3)
        slopes = np.empty((3, 3))
        target = np.empty(3)
        best = np.empty(3)
        trial = np.empty(3)
        move = np.empty(3)
        r = np.empty(3)
        for yi in range(ny):
            for zi in range(nz):
                target[0], target[1], target[2] = xi, yi, zi
                for i in range(3):
                    trial[i] = target[i] - field[i, xi, yi, zi]
                    best[i] = trial[i]
                best_error = 1e30
                scale = 1.0
                for _ in range(steps):
                    _displacement_and_slopes(field, trial, u, slopes)
                    error = 0.0
                    for i in range(3):
                        r[i] = trial[i] + u[i] - target[i]
                        error += r[i] * r[i]
                    if error < best_error:
                        best_error = error
                        for i in range(3):
                            best[i] = trial[i]
                        if error < tolerance * tolerance:
                            break
                        scale = min(1.0, 2 * scale)
                        a, b, c = 1 + slopes[0, 0], slopes[0, 1], slopes[0, 2]
                        d, e, f = slopes[1, 0], 1 + slopes[1, 1], slopes[1, 2]
                        g, h, k = slopes[2, 0], slopes[2, 1], 1 + slopes[2, 2]
                        det = a * (e * k - f * h) - b * (d * k - f * g) + c * (d * h - e * g)
                        if det > 0.05:
                            move[0] = ((e * k - f * h) * r[0] + (c * h - b * k) * r[1] + (b * f - c * e) * r[2]) / det
                            move[1] = ((f * g - d * k) * r[0] + (a * k - c * g) * r[1] + (c * d - a * f) * r[2]) / det
                            move[2] = ((d * h - e * g) * r[0] + (b * g - a * h) * r[1] + (a * e - b * d) * r[2]) / det
                        else:
                            for i in range(3):
                                move[i] = r[i]
                    else:
                        scale /= 2
                    for i in range(3):
                        trial[i] = best[i] - scale * move[i]
                for i in range(3):
                    inverse[i, xi, yi, zi] = best[i] - target[i]


@numba.njit(parallel=True, cache=True)
def smallest_determinants(field, voxels, out):
    """Smallest Jacobian determinant of ``x -> x + u(x)`` among the eight cell corners that meet at a voxel.

    Parameters
    ----------
    field : (3, X, Y, Z)
        Displacements in voxels, component i along axis i; constant beyond the border.
    voxels : (N, 3) int64
        Where to look.
    out : (N,)
        Output.
    """
    _, nx, ny, nz = field.shape
    for n in numba.prange(len(voxels)):
        x, y, z = voxels[n]
        # columns[side, axis] is the map's derivative along an axis, towards the next voxel or from the last one.
        columns = np.empty((2, 3, 3), np.float32)
        for i in range(3):
            u = field[i]
            here = u[x, y, z]
            columns[0, 0, i] = u[min(x + 1, nx - 1), y, z] - here
            columns[0, 1, i] = u[x, min(y + 1, ny - 1), z] - here
            columns[0, 2, i] = u[x, y, min(z + 1, nz - 1)] - here
            columns[1, 0, i] = here - u[max(x - 1, 0), y, z]
            columns[1, 1, i] = here - u[x, max(y - 1, 0), z]
            columns[1, 2, i] = here - u[x, y, max(z - 1, 0)]
        for i in range(3):
            columns[0, i, i] += 1
            columns[1, i, i] += 1
        smallest = np.float32(np.inf)
        for p in range(2):
            a = columns[p, 0]
            for q in range(2):
                b = columns[q, 1]
                for r in range(2):
                    c = columns[r, 2]
                    determinant = (
                        a[0] * (b[1] * c[2] - b[2] * c[1])
                        - a[1] * (b[0] * c[2] - b[2] * c[0])
                        + a[2] * (b[0] * c[1] - b[1] * c[0])
                    )
                    smallest = min(smallest, determinant)
        out[n] = smallest


@numba.njit(parallel=True, cache=True)
def smoothed_at(field, voxels, side_weight, out):
    """Average of a field over the 27 voxels around some voxels; the nearest voxel counts beyond the border.

    Parameters
    ----------
    field : (3, X, Y, Z)
        Any displacements.
    voxels : (N, 3) int64
        Where to average.
    side_weight : float
        Weight of a neighbour along each axis; the voxel itself has what is left of 1.
    out : (N, 3)
        Output.
    """
    _, nx, ny, nz = field.shape
    weights = np.array([side_weight, 1 - 2 * side_weight, side_weight])
    for n in numba.prange(len(voxels)):
        x, y, z = voxels[n]
        for i in range(3):
            total = 0.0
            for dx in range(3):
                for dy in range(3):
                    for dz in range(3):
                        value = field[
                            i,
                            min(max(x + dx - 1, 0), nx - 1),
                            min(max(y + dy - 1, 0), ny - 1),
                            min(max(z + dz - 1, 0), nz - 1),
                        ]
                        total += weights[dx] * weights[dy] * weights[dz] * value
            out[n, i] = total


@numba.njit(parallel=True, cache=True, fastmath={"contract", "nsz"})
def box_sum(volumes, radius, out, scratch):
    """Sums over cubes of ``2 * radius + 1`` voxels, zero beyond the border.

    Parameters
    ----------
    volumes, out, scratch : (N, D, H, W)
        Input, result, and room for the sums within slices.
    radius : int
        Half the window.
    """
    count, depth, height, width = volumes.shape
    for job in numba.prange(count * depth):
        n = job // depth
        d = job % depth
        line = np.zeros(width + 2 * radius, np.float32)
        rows = np.empty((height, width), np.float32)
        for h in range(height):
            for w in range(width):
                line[radius + w] = volumes[n, d, h, w]
            for w in range(width):
                rows[h, w] = line[w]
            for k in range(1, 2 * radius + 1):
                for w in range(width):
                    rows[h, w] += line[w + k]
        for h in range(height):
            first = max(h - radius, 0)
            for w in range(width):
                scratch[n, d, h, w] = rows[first, w]
            for k in range(first + 1, min(h + radius + 1, height)):
                for w in range(width):
                    scratch[n, d, h, w] += rows[k, w]
    for job in numba.prange(count * depth):
        n = job // depth
        d = job % depth
        first = max(d - radius, 0)
        for h in range(height):
            for w in range(width):
                out[n, d, h, w] = scratch[n, first, h, w]
            for k in range(first + 1, min(d + radius + 1, depth)):
                for w in range(width):
                    out[n, d, h, w] += scratch[n, k, h, w]


@numba.njit(parallel=True, cache=True, fastmath={"contract", "nsz"})
def membrane(field, weights, energy, gradient):
    """Weighted sums of squared forward differences of a field, and their gradient.

    Parameters
    ----------
    field, gradient : (C, D, H, W)
        Input; output: derivative of the weighted energy by every voxel.
    weights : (C, 3)
        Weight of channel c's squared differences along D, H, W.
    energy : (C, D)
        Output: energy of the differences starting in each slice; their sum is the whole, float64.
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
                gradient[c, d, h, w] = 2 * slope
            total += row
        energy[c, d] = total
