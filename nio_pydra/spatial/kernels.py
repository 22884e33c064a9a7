"""Compiled CPU loops of geometry. Callers import this module inside functions (see `system.compiled`).

Arrays are C-contiguous, and float32 unless stated otherwise. Each output voxel is written by one thread and summed in a
fixed order, so results do not depend on the number of threads.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from nio_pydra.system.compiled import compiled

__all__ = [
    "affine_points",
    "compose_adjoint",
    "compose_fields",
    "invert_displacement",
    "sample_linear",
    "smallest_determinants",
    "smoothed_at",
    "spread_round_trip",
    "square_adjoint",
    "upsample_adjoint",
    "upsample_linear",
    "warp_with_slope",
    "window_sums_kernel",
]


@numba.njit(inline="always")
def _corner(position, size):
    """Return the lower neighbour of a position, its distance, and 1 inside and 0 beyond the border, all clamped."""
    free = np.float32(1) if 0 < position < size - 1 else np.float32(0)
    clamped = min(max(position, np.float32(0)), np.float32(size - 1))
    lower = min(int(clamped), size - 2)
    return lower, np.float32(clamped - lower), free


@numba.njit(inline="always")
def _target(field, d, h, w, depth, height, width):
    """Return where a unit field takes a voxel: for z, y and x the lower neighbour, the distance, and voxels per unit.

    Beyond the border a unit moves nothing.
    """
    per_z, per_y, per_x = np.float32((depth - 1) / 2), np.float32((height - 1) / 2), np.float32((width - 1) / 2)
    z, fz, free_z = _corner(d + field[2, d, h, w] * per_z, depth)
    y, fy, free_y = _corner(h + field[1, d, h, w] * per_y, height)
    x, fx, free_x = _corner(w + field[0, d, h, w] * per_x, width)
    return z, fz, free_z * per_z, y, fy, free_y * per_y, x, fx, free_x * per_x


@numba.njit(inline="always")
def _linear(volume, z, y, x, fz, fy, fx):
    """Return the trilinear value between the corner ``z, y, x`` and the next ones, and its slopes along the axes."""
    a = volume[z, y, x]
    b = volume[z, y + 1, x]
    c = volume[z + 1, y, x]
    e = volume[z + 1, y + 1, x]
    dx00 = volume[z, y, x + 1] - a
    dx01 = volume[z, y + 1, x + 1] - b
    dx10 = volume[z + 1, y, x + 1] - c
    dx11 = volume[z + 1, y + 1, x + 1] - e
    low = a + fx * dx00
    low_step = b + fx * dx01 - low
    high = c + fx * dx10
    high_step = e + fx * dx11 - high
    bottom = low + fy * low_step
    by_z = high + fy * high_step - bottom
    dx_low = dx00 + fy * (dx01 - dx00)
    dx_high = dx10 + fy * (dx11 - dx10)
    return bottom + fz * by_z, by_z, low_step + fz * (high_step - low_step), dx_low + fz * (dx_high - dx_low)


@compiled(parallel=True, fastmath={"contract", "nsz", "arcp"})
def warp_with_slope(image, field, warped, slope):
    """Warp one volume trilinearly by a unit field, and compute the derivative with respect to that field.

    Parameters
    ----------
    image : (D, H, W)
        Moving image.
    field : (3, D, H, W)
        Unit field on the same grid, channel 0 along W.
    warped : (D, H, W)
        Output. Beyond the border it takes the nearest voxel.
    slope : (3, D, H, W)
        Output: derivative of `warped` by each channel of `field`, zero beyond the border. An empty array skips it.
    """
    depth, height, width = image.shape
    wants_slope = slope.shape[1] > 0
    per_z = np.float32((depth - 1) / 2)
    per_y = np.float32((height - 1) / 2)
    per_x = np.float32((width - 1) / 2)
    for d in numba.prange(depth):
        for h in range(height):
            for w in range(width):
                z, fz, free_z = _corner(d + field[2, d, h, w] * per_z, depth)
                y, fy, free_y = _corner(h + field[1, d, h, w] * per_y, height)
                x, fx, free_x = _corner(w + field[0, d, h, w] * per_x, width)
                warped[d, h, w], by_z, by_y, by_x = _linear(image, z, y, x, fz, fy, fx)
                if wants_slope:
                    slope[0, d, h, w] = free_x * per_x * by_x
                    slope[1, d, h, w] = free_y * per_y * by_y
                    slope[2, d, h, w] = free_z * per_z * by_z


@compiled(parallel=True)
def sample_linear(volumes, positions, out):
    """Sample volumes trilinearly as ITK does: clamped within half a voxel of the border, zero beyond.

    Parameters
    ----------
    volumes : (C, X, Y, Z)
        Any real dtype.
    positions : (N, 3) float64
        Positions in voxels.
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


@compiled(parallel=True)
def affine_points(matrix, points, out):
    """Apply the upper three rows of a 4x4 matrix to points ``(N, 3)``; all float64."""
    for i in numba.prange(len(points)):
        x, y, z = points[i]
        for row in range(3):
            out[i, row] = matrix[row, 0] * x + matrix[row, 1] * y + matrix[row, 2] * z + matrix[row, 3]


@compiled()
def _displacement_and_slopes(field, p, value, slopes):
    """Compute the trilinear displacement at a position clamped to the grid, and its derivatives ``slopes[i, axis]``."""
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


@compiled(parallel=True)
def invert_displacement(field, inverse, steps, tolerance):
    """Solve ``x + u(x) = y`` at every voxel y; ``inverse = x - y``.

    It takes damped Newton steps, and fixed-point steps where the field folds or nearly folds. A step that increases
    the error is halved.

    Parameters
    ----------
    field, inverse : (3, X, Y, Z)
        Displacements in voxels, component i along axis i; input and output.
    steps : int
        Maximum of evaluations per voxel.
    tolerance : float
        Error in voxels at which the search ends.
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


@compiled()
def spread_round_trip(field, inverse, errors, weights):
    """Map every voxel by a field and its inverse, and add its error to the nodes of the inverse that were used.

    This runs on one thread, because several voxels add to one node.

    Parameters
    ----------
    field, inverse : (3, X, Y, Z)
        Displacements in voxels, component i along axis i.
    errors : (3, X, Y, Z)
        Output: sum over voxels x of ``u(x) + v(x + u(x))`` times the trilinear weight of the node; input zero.
    weights : (X, Y, Z)
        Output: sum of those weights; input zero.
    """
    _, nx, ny, nz = field.shape
    one = np.float32(1)
    for xi in range(nx):
        for yi in range(ny):
            for zi in range(nz):
                x = xi + field[0, xi, yi, zi]
                y = yi + field[1, xi, yi, zi]
                z = zi + field[2, xi, yi, zi]
                if not (0 <= x <= nx - 1 and 0 <= y <= ny - 1 and 0 <= z <= nz - 1):
                    continue
                x0, y0, z0 = min(int(x), nx - 2), min(int(y), ny - 2), min(int(z), nz - 2)
                fx, fy, fz = np.float32(x - x0), np.float32(y - y0), np.float32(z - z0)
                shares = (
                    (one - fx) * (one - fy) * (one - fz),
                    (one - fx) * (one - fy) * fz,
                    (one - fx) * fy * (one - fz),
                    (one - fx) * fy * fz,
                    fx * (one - fy) * (one - fz),
                    fx * (one - fy) * fz,
                    fx * fy * (one - fz),
                    fx * fy * fz,
                )
                for n in range(8):
                    weights[x0 + (n >> 2), y0 + ((n >> 1) & 1), z0 + (n & 1)] += shares[n]
                for i in range(3):
                    error = field[i, xi, yi, zi]
                    for n in range(8):
                        error += shares[n] * inverse[i, x0 + (n >> 2), y0 + ((n >> 1) & 1), z0 + (n & 1)]
                    for n in range(8):
                        errors[i, x0 + (n >> 2), y0 + ((n >> 1) & 1), z0 + (n & 1)] += shares[n] * error


@compiled(parallel=True)
def smallest_determinants(field, voxels, out):
    """Compute the smallest Jacobian determinant of ``x -> x + u(x)`` at the eight cell corners that meet at a voxel.

    Parameters
    ----------
    field : (3, X, Y, Z)
        Displacements in voxels, component i along axis i; constant beyond the border.
    voxels : (N, 3) int64
        Voxels to examine.
    out : (N,)
        Output.
    """
    _, nx, ny, nz = field.shape
    for n in numba.prange(len(voxels)):
        x, y, z = voxels[n]
        # columns[side, axis]: derivative of the map along an axis, to the next voxel (0) or from the previous one (1).
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


@compiled(parallel=True)
def smoothed_at(field, voxels, side_weight, out):
    """Average a field over the 27 voxels around each of some voxels, with the nearest voxel beyond the border.

    Parameters
    ----------
    field : (3, X, Y, Z)
        Any displacements.
    voxels : (N, 3) int64
        Voxels to average at.
    side_weight : float
        Weight of a neighbour along each axis. The voxel itself has ``1 - 2 * side_weight``.
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


@functools.cache
def window_sums_kernel(radius):
    """Return the kernel ``(volumes, out)`` that sums over cubes of ``2 * radius + 1`` voxels, zero beyond the border.

    Both are ``(N, D, H, W)``. The radius is a constant of the compiled code, so that sums stay in registers.
    """

    @compiled(parallel=True, fastmath={"contract", "nsz"})
    def kernel(volumes, out):
        count, depth, height, width = volumes.shape
        for job in numba.prange(count * depth):
            n = job // depth
            d = job % depth
            line = np.zeros(width + 2 * radius, np.float32)
            rows = np.zeros((height + 2 * radius, width), np.float32)
            for h in range(height):
                if radius <= d < depth - radius:
                    for w in range(width):
                        total = np.float32(0)
                        for k in range(2 * radius + 1):
                            total += volumes[n, d - radius + k, h, w]
                        line[radius + w] = total
                else:
                    line[:] = 0
                    for k in range(max(d - radius, 0), min(d + radius + 1, depth)):
                        for w in range(width):
                            line[radius + w] += volumes[n, k, h, w]
                for w in range(width):
                    total = np.float32(0)
                    for k in range(2 * radius + 1):
                        total += line[w + k]
                    rows[radius + h, w] = total
            for h in range(height):
                for w in range(width):
                    total = np.float32(0)
                    for k in range(2 * radius + 1):
                        total += rows[h + k, w]
                    out[n, d, h, w] = total

    return kernel


@numba.njit(inline="always")
def _neighbours(fine, factor, size):
    """Return the two coarse neighbours of a fine position and its distance from the first (half-pixel centres)."""
    position = max((fine + np.float32(0.5)) / factor - np.float32(0.5), np.float32(0))
    first = int(position)
    return first, min(first + 1, size - 1), np.float32(position - first)


@numba.njit(inline="always")
def _share(fine, coarse, factor, size):
    """Return the weight of a coarse voxel at a fine position."""
    first, second, distance = _neighbours(fine, factor, size)
    share = np.float32(0)
    if first == coarse:
        share += np.float32(1) - distance
    if second == coarse:
        share += distance
    return np.float32(share)


@compiled(parallel=True, fastmath={"contract", "nsz"})
def upsample_linear(coarse, factor, fine):
    """Upsample trilinearly by a whole number, with the outer borders of the volumes aligned.

    Parameters
    ----------
    coarse : (C, D, H, W)
        Input.
    factor : int
        At least 2.
    fine : (C, factor D, factor H, factor W)
        Output. Beyond the outermost centres it takes the nearest voxel.
    """
    channels, depth, height, width = coarse.shape
    _, fine_depth, fine_height, fine_width = fine.shape
    for job in numba.prange(channels * fine_depth):
        c = job // fine_depth
        z = job % fine_depth
        below, above, z_distance = _neighbours(z, factor, depth)
        row = np.empty(width + 2, np.float32)  # with both border voxels repeated
        plane = np.empty((height, fine_width), np.float32)
        for h in range(height):
            for w in range(width):
                low = coarse[c, below, h, w]
                row[w + 1] = low + z_distance * (coarse[c, above, h, w] - low)
            row[0] = row[1]
            row[width + 1] = row[width]
            for phase in range(factor):
                shift = (phase + np.float32(0.5)) / factor + np.float32(0.5)
                start = int(shift)
                distance = np.float32(shift - start)
                for w in range(width):
                    low = row[w + start]
                    plane[h, factor * w + phase] = low + distance * (row[w + start + 1] - low)
        for y in range(fine_height):
            first, second, y_distance = _neighbours(y, factor, height)
            for x in range(fine_width):
                fine[c, z, y, x] = plane[first, x] + y_distance * (plane[second, x] - plane[first, x])


@compiled(parallel=True, fastmath={"contract", "nsz"})
def upsample_adjoint(fine, factor, coarse):
    """Compute the gradient of `upsample_linear` by its input from that by its output, with the same shapes."""
    channels, depth, height, width = coarse.shape
    _, fine_depth, fine_height, fine_width = fine.shape
    for job in numba.prange(channels * depth):
        c = job // depth
        d = job % depth
        plane = np.zeros((fine_height, fine_width), np.float32)
        for z in range(max(factor * (d - 1), 0), min(factor * (d + 2), fine_depth)):
            share = _share(z, d, factor, depth)
            if share > 0:
                for y in range(fine_height):
                    for x in range(fine_width):
                        plane[y, x] += share * fine[c, z, y, x]
        for h in range(height):
            row = np.zeros(fine_width, np.float32)
            for y in range(max(factor * (h - 1), 0), min(factor * (h + 2), fine_height)):
                share = _share(y, h, factor, height)
                if share > 0:
                    for x in range(fine_width):
                        row[x] += share * plane[y, x]
            coarse[c, d, h] = 0
            for x in range(fine_width):
                first, second, distance = _neighbours(x, factor, width)
                coarse[c, d, h, first] += (np.float32(1) - distance) * row[x]
                coarse[c, d, h, second] += distance * row[x]


@compiled(parallel=True, fastmath={"contract", "nsz"})
def compose_fields(first, then, out):
    """Compute the displacement of one field followed by another: ``first(x) + then(x + first(x))``.

    Parameters
    ----------
    first, then : (3, D, H, W)
        Unit fields, channel 0 along W.
    out : (3, D, H, W)
        Output.
    """
    _, depth, height, width = first.shape
    for d in numba.prange(depth):
        for h in range(height):
            for w in range(width):
                z, fz, _, y, fy, _, x, fx, _ = _target(first, d, h, w, depth, height, width)
                for c in range(3):
                    out[c, d, h, w] = first[c, d, h, w] + _linear(then[c], z, y, x, fz, fy, fx)[0]


@compiled(parallel=True, fastmath={"contract", "nsz"})
def compose_adjoint(first, then, upstream, gradient):
    """Compute the gradient of `compose_fields` by its first field.

    Parameters
    ----------
    first, then, upstream : (3, D, H, W)
        Inputs of `compose_fields`, and the derivative by its output.
    gradient : (3, D, H, W)
        Output.
    """
    _, depth, height, width = first.shape
    for d in numba.prange(depth):
        for h in range(height):
            for w in range(width):
                z, fz, slope_z, y, fy, slope_y, x, fx, slope_x = _target(first, d, h, w, depth, height, width)
                by_x = by_y = by_z = np.float32(0)
                for c in range(3):
                    g = upstream[c, d, h, w]
                    _, to_z, to_y, to_x = _linear(then[c], z, y, x, fz, fy, fx)
                    by_x += g * to_x
                    by_y += g * to_y
                    by_z += g * to_z
                gradient[0, d, h, w] = upstream[0, d, h, w] + slope_x * by_x
                gradient[1, d, h, w] = upstream[1, d, h, w] + slope_y * by_y
                gradient[2, d, h, w] = upstream[2, d, h, w] + slope_z * by_z


@compiled(parallel=True, fastmath={"contract", "nsz"})
def square_adjoint(field, upstream, slabs, reach, gradient):
    """Compute the gradient of a field followed by itself (`compose_fields`) by that field.

    A slab of the gradient is written by one thread, which visits all voxels that can reach it, in order. So the sums
    do not depend on the number of slabs.

    Parameters
    ----------
    field, upstream : (3, D, H, W)
        Both inputs of `compose_fields`, and the derivative by its output.
    slabs : int
        Number of slabs along D.
    reach : int
        Upper bound of the displacement along D in voxels.
    gradient : (3, D, H, W)
        Output.
    """
    _, depth, height, width = field.shape
    per_z, per_y, per_x = np.float32((depth - 1) / 2), np.float32((height - 1) / 2), np.float32((width - 1) / 2)
    one = np.float32(1)
    for slab in numba.prange(slabs):
        first = slab * depth // slabs
        last = (slab + 1) * depth // slabs
        gradient[:, first:last] = upstream[:, first:last]
        for d in range(max(first - reach - 1, 0), min(last + reach + 1, depth)):
            own = first <= d < last
            for h in range(height):
                for w in range(width):
                    z, fz, free_z = _corner(d + field[2, d, h, w] * per_z, depth)
                    writes_low = first <= z < last
                    writes_high = first <= z + 1 < last
                    if not (own or writes_low or writes_high):
                        continue
                    y, fy, free_y = _corner(h + field[1, d, h, w] * per_y, height)
                    x, fx, free_x = _corner(w + field[0, d, h, w] * per_x, width)
                    by_x = by_y = by_z = np.float32(0)
                    for c in range(3):
                        g = upstream[c, d, h, w]
                        if own:
                            _, to_z, to_y, to_x = _linear(field[c], z, y, x, fz, fy, fx)
                            by_x += g * to_x
                            by_y += g * to_y
                            by_z += g * to_z
                        if writes_low:
                            share = g * (one - fz)
                            gradient[c, z, y, x] += share * (one - fy) * (one - fx)
                            gradient[c, z, y, x + 1] += share * (one - fy) * fx
                            gradient[c, z, y + 1, x] += share * fy * (one - fx)
                            gradient[c, z, y + 1, x + 1] += share * fy * fx
                        if writes_high:
                            share = g * fz
                            gradient[c, z + 1, y, x] += share * (one - fy) * (one - fx)
                            gradient[c, z + 1, y, x + 1] += share * (one - fy) * fx
                            gradient[c, z + 1, y + 1, x] += share * fy * (one - fx)
                            gradient[c, z + 1, y + 1, x + 1] += share * fy * fx
                    if own:
                        gradient[0, d, h, w] += free_x * per_x * by_x
                        gradient[1, d, h, w] += free_y * per_y * by_y
                        gradient[2, d, h, w] += free_z * per_z * by_z
