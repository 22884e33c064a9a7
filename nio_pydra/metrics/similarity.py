"""How alike two images are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nio_pydra.losses import lncc
from nio_pydra.spatial.conform import scale_intensities

__all__ = ["WINDOW", "local_similarity"]

WINDOW = 7


def local_similarity(fixed: NDArray[np.float32], warped: NDArray[np.float32], region: NDArray[np.bool_]) -> float:
    """Mean squared local cross-correlation inside a region; nothing beside it counts.

    Parameters
    ----------
    fixed, warped : ndarray
        ``(X, Y, Z)``, on one grid, no voxel below zero.
    region : ndarray of bool
        Of the same shape, not empty.

    Returns
    -------
    float
        0 to 1, over windows of 7 voxels.
    """
    volumes = [scale_intensities(volume * region, "percentile") for volume in (fixed, warped)]
    with torch.no_grad():
        weights = torch.from_numpy(region.astype(np.float32))[None, None]
        return -float(lncc(volumes[0], volumes[1], WINDOW, weights))
