"""B-spline deformation model: a field made of a coarse control field, which average poolings smooth.

Three poolings over 3 control points are close to a cubic B-spline. Whatever the control field is, the deformation is
smooth. Source: Siebert et al., "Fast 3D registration with accurate optimisation and little learning for Learn2Reg
2021", as described in the NIO paper (Section 3, baselines).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from nio_pydra.spatial.unit_grid import upsample
from nio_pydra.spatial.windows import window_means

__all__ = ["SPACING", "bspline"]

SPACING = 2
"""Distance of the control points, in voxels of the full grid."""


def bspline(field: Tensor, shape: Sequence[int], smoothings: int) -> Tensor:
    """Bring a network's field to full resolution, as a B-spline where that is wanted.

    The control field has a point at every second voxel, at every level of the network: a field of full resolution is
    averaged down to it, one of a quarter is upsampled. So a number of smoothings means the same at all levels.

    Parameters
    ----------
    field : Tensor
        Unit field ``(1, 3, d, h, w)`` of one level of the network.
    shape : sequence of int
        ``(D, H, W)``, full resolution: `d` times 1, 2 or 4, and D even.
    smoothings : int
        Average poolings of the control field, each over 3 x 3 x 3 points. 0: there is no control field, and the field
        is only upsampled.

    Returns
    -------
    Tensor
        Unit field ``(1, 3, D, H, W)``.
    """
    if smoothings == 0:
        return upsample(field, shape[0] // field.shape[2])
    scale = shape[0] // field.shape[2]
    control = functional.avg_pool3d(field, SPACING) if scale == 1 else upsample(field, scale // SPACING)
    for _ in range(smoothings):
        control = window_means(control, 3)
    return upsample(control, SPACING)
