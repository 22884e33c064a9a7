"""Similarity of two images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nio_pydra.losses import lncc
from nio_pydra.spatial.conform import scale_intensities

__all__ = ["local_similarity"]

WINDOW = 7


def local_similarity(fixed: NDArray[np.float32], warped: NDArray[np.float32], region: NDArray[np.bool_]) -> float:
    """Return the mean squared local cross-correlation inside a region; voxels outside it are ignored.

    Parameters
    ----------
    fixed, warped : ndarray
        ``(X, Y, Z)`` on one grid, without negative voxels.
    region : ndarray of bool
        Same shape, not empty.

    Returns
    -------
    float
        0 to 1, in windows of 7 voxels.
    """
    volumes = [scale_intensities(volume * region, "percentile") for volume in (fixed, warped)]
    with torch.no_grad():
        weights = torch.from_numpy(region.astype(np.float32))[None, None]
        return -float(lncc(volumes[0], volumes[1], WINDOW, weights))
