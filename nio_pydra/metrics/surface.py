"""Distance between the surfaces of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

__all__ = ["hausdorff_95"]


def hausdorff_95(
    a: NDArray[np.integer], b: NDArray[np.integer], labels: Iterable[int], voxel_sizes: Sequence[float]
) -> dict[int, float]:
    """95 % Hausdorff distance of labels: the larger of the two directed 95th percentiles between surface voxels.

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
        Label to distance in mm, in the order given; a label that one of the maps lacks is left out.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"label maps have shapes {a.shape} and {b.shape}: expected the same")
    labels = list(labels)
    boxes = [find_objects(_compact(x, labels), len(labels)) for x in (a, b)]
    found = {}
    for label, box_a, box_b in zip(labels, *boxes, strict=True):
        if box_a is None or box_b is None:
            continue
        box = tuple(
            slice(max(min(p.start, q.start) - 1, 0), max(p.stop, q.stop) + 1) for p, q in zip(box_a, box_b, strict=True)
        )
        found[label] = _distance(a[box] == label, b[box] == label, voxel_sizes)
    return found


def _compact(labels_of: NDArray[np.integer], labels: Sequence[int]) -> NDArray[np.int32]:
    """Number the labels from 1 on, in their order; all others are 0."""
    values, inverse = np.unique(labels_of, return_inverse=True)
    numbers = {label: number for number, label in enumerate(labels, start=1)}
    table = np.array([numbers.get(int(value), 0) for value in values], np.int32)
    return table[inverse].reshape(labels_of.shape)


def _distance(a: NDArray[np.bool_], b: NDArray[np.bool_], voxel_sizes: Sequence[float]) -> float:
    surfaces = [x & ~binary_erosion(x) for x in (a, b)]
    away = [distance_transform_edt(~surface, sampling=voxel_sizes) for surface in surfaces]
    return float(max(np.percentile(away[1][surfaces[0]], 95), np.percentile(away[0][surfaces[1]], 95)))
