"""Overlap of label maps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["dice", "mean_of_lowest"]


def dice(a: NDArray[np.integer], b: NDArray[np.integer], expected: set[int] | None = None) -> dict[int, float]:
    """Return the Dice similarity coefficient (DSC) of every label that both maps hold.

    Parameters
    ----------
    a, b : ndarray
        Label maps of equal shape; 0 and negative values are background.
    expected : set of int, optional
        Labels that `b` held before it was resampled. One that the resampling lost scores 0 instead of being skipped.

    Returns
    -------
    dict
        DSC by label, in the order of the labels. A label absent from one map is skipped, as in the NIO paper.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> atlas, moved = np.array([1, 1, 2, 2, 3]), np.array([1, 1, 1, 2, 0])
    >>> dice(atlas, moved, expected={3})
    {1: 0.8, 2: 0.6666666666666666, 3: 0.0}
    """
    if a.shape != b.shape:
        raise ValueError(f"label maps have shapes {a.shape} and {b.shape}: expected the same")
    size_a, size_b, both = (
        dict(zip(*np.unique(x[x > 0], return_counts=True), strict=True)) for x in (a, b, np.where(a == b, a, 0))
    )
    counted = set(size_b) | (expected or set())
    return {int(k): float(2 * both.get(k, 0) / (size_a[k] + size_b.get(k, 0))) for k in sorted(size_a) if k in counted}


def mean_of_lowest(values: Iterable[float], share: float = 0.3) -> float:
    """Return the mean of the lowest `share` of values, at least of one (DSC30 of the NIO paper, over cases)."""
    ordered = np.sort(np.fromiter(values, float))
    return float(ordered[: max(1, round(share * len(ordered)))].mean())
