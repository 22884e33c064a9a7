"""Distances between the surfaces of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

__all__ = ["hausdorff_95"]


def hausdorff_95(
    a: NDArray[np.integer], b: NDArray[np.integer], labels: Iterable[int], voxel_sizes: Sequence[float]
) -> dict[int, float]:
    """Return the 95 % Hausdorff distance of labels, the larger of the two directed 95th percentiles between surfaces.

    Parameters
    ----------
    a, b : ndarray
        Label maps ``(X, Y, Z)`` of equal shape.
    labels : iterable of int
        Labels to measure, all positive.
    voxel_sizes : sequence of float
        Edges of a voxel in mm, along X, Y and Z.

    Returns
    -------
    dict
        Distance in mm by label, in the order of `labels`. A label absent from one map is skipped.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"label maps have shapes {a.shape} and {b.shape}: expected the same")
    labels = list(labels)
    boxes = [find_objects(_compact(x, labels), len(labels)) for x in (a, b)]
    distances = {}
    for label, box_a, box_b in zip(labels, *boxes, strict=True):
        if box_a is None or box_b is None:
            continue
        box = tuple(
            slice(max(min(p.start, q.start) - 1, 0), max(p.stop, q.stop) + 1) for p, q in zip(box_a, box_b, strict=True)
        )
        distances[label] = _distance(a[box] == label, b[box] == label, voxel_sizes)
    return distances


def _compact(label_map: NDArray[np.integer], labels: Sequence[int]) -> NDArray[np.int32]:
    """Replace labels by their position in a list, starting at 1, and all others by 0."""
    values, inverse = np.unique(label_map, return_inverse=True)
    numbers = {label: number for number, label in enumerate(labels, start=1)}
    table = np.array([numbers.get(int(value), 0) for value in values], np.int32)
    return table[inverse].reshape(label_map.shape)


def _distance(a: NDArray[np.bool_], b: NDArray[np.bool_], voxel_sizes: Sequence[float]) -> float:
    surfaces = [x & ~binary_erosion(x) for x in (a, b)]
    to_surface = [distance_transform_edt(~surface, sampling=voxel_sizes) for surface in surfaces]
    return float(max(np.percentile(to_surface[1][surfaces[0]], 95), np.percentile(to_surface[0][surfaces[1]], 95)))
