"""Nothing that is NaN or infinite leaves a computation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nio_pydra.errors import ComputationError

__all__ = ["require_finite"]


def require_finite(values: NDArray[np.generic], what: str) -> None:
    """Refuse NaN and infinite values.

    Parameters
    ----------
    values : ndarray
        Numbers of any kind and shape.
    what : str
        What holds them; the sentence begins with it.

    Raises
    ------
    ComputationError
        With the number of such values.
    """
    # A sum is finite only if all values are, and costs no second array.
    if values.dtype.kind in "biu" or np.isfinite(values.sum(dtype=np.float64)):
        return
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise ComputationError(f"{what} holds {bad} NaN or infinite numbers: expected none.")
