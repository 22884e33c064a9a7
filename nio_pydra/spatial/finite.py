"""Check that the result of a computation is finite."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nio_pydra.errors import ComputationError

__all__ = ["require_finite"]


def require_finite(values: NDArray[np.generic], what: str) -> None:
    """Raise an error if values are NaN or infinite.

    Parameters
    ----------
    values : ndarray
        Numbers of any kind and shape.
    what : str
        Name of the values, with which the message begins.

    Raises
    ------
    ComputationError
        If there are such values; the message gives their number.
    """
    # A sum is finite only if all values are, and needs no second array.
    if values.dtype.kind in "biu" or np.isfinite(values.sum(dtype=np.float64)):
        return
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise ComputationError(f"{what} holds {bad} NaN or infinite numbers: expected none.")
