"""MPR, the network of MultiPropReg: a matching cost at two scales, each followed by refinement and integration.

One encoder serves both images. At 1/4 resolution the L1 distance of their features, beside the fixed features, gives a
velocity; dilated convolutions refine it, and scaling and squaring integrate it. The same at 1/2, on moving features
warped so far, gives the field. Source: Liu et al., "Learning Deformable Image Registration From Optimization:
Perspective, Modules, Bilevel Training and Beyond" (TPAMI 2022).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nio_pydra.networks.interface import Network, require_size
from nio_pydra.spatial.unit_grid import identity_grid, voxel_to_unit

__all__ = ["MPR", "MPRConfig"]

SLOPE = 0.2  # of the LeakyReLU of features and matching
REFINING_SLOPE = 0.1
DILATIONS = (1, 2, 4)
SQUARINGS = 7
SIZE_MULTIPLE = 4


@dataclass(frozen=True)
class MPRConfig:
    """Shape of a network.

    Attributes
    ----------
    fine_channels, coarse_channels : int
        Width of the features at 1/2 and at 1/4 resolution.
    matching_channels, refining_channels : tuple of int
        Widths of the convolutions from the matching cost to a velocity, and of those that refine it.
    """

    conditional: ClassVar[bool] = False
    fine_channels: int = 16
    coarse_channels: int = 32
    matching_channels: tuple[int, int, int] = (48, 32, 16)
    refining_channels: tuple[int, int, int] = (48, 48, 32)

    def __post_init__(self) -> None:
        widths = (self.fine_channels, self.coarse_channels, *self.matching_channels, *self.refining_channels)
        if min(widths) < 1:
            raise ValueError("channel numbers must be positive")
        if len(self.matching_channels) != 3 or len(self.refining_channels) != len(DILATIONS):
            raise ValueError("matching_channels and refining_channels need 3 numbers each")

    def to_dict(self) -> dict[str, object]:
        """Return plain values, as stored in a checkpoint's metadata."""
        return asdict(self)


class Scale(nn.Module):
    """From the features of one scale to an integrated field.

    Parameters
    ----------
    inputs : int
        Channels: the matching cost (1) and the fixed features, at the finer scale also what the coarser one found.
    config : MPRConfig
        Shape of the network.
    """

    def __init__(self, inputs: int, config: MPRConfig) -> None:
        super().__init__()
        widths = (inputs, *config.matching_channels)
        self.matching = nn.ModuleList(nn.Conv3d(widths[i], widths[i + 1], 3, padding=1) for i in range(3))
        self.velocity = nn.Conv3d(widths[-1], 3, 3, padding=1)
        widths = (3, *config.refining_channels)
        self.refining = nn.ModuleList(
            nn.Conv3d(widths[i], widths[i + 1], 3, padding=reach, dilation=reach) for i, reach in enumerate(DILATIONS)
        )
        self.correction = nn.Conv3d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor, below: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predict a voxel field of the scale, and the features that it was made of.

        Parameters
        ----------
        x : Tensor
            ``(N, inputs, d, h, w)``.
        below : Tensor, optional
            Voxel field ``(N, 3, d, h, w)`` of the coarser scale, to which the velocity is added.
        """
        for layer in self.matching:
            x = functional.leaky_relu(layer(x), SLOPE)
        velocity = self.velocity(x)
        if below is not None:
            velocity = velocity + below
        y = velocity
        for layer in self.refining:
            y = functional.leaky_relu(layer(y), REFINING_SLOPE)
        field = (velocity + self.correction(y)).float() / 2**SQUARINGS
        for _ in range(SQUARINGS):
            field = field + _sampled(field, field)
        return field, x


class MPR(Network):
    """The registration network of MultiPropReg.

    Parameters
    ----------
    config : MPRConfig, optional
        Shape of the network; default: that of the published weights.
    """

    architecture: ClassVar[str] = "mpr"
    config_class: ClassVar[type[MPRConfig]] = MPRConfig
    size_multiple: ClassVar[int] = SIZE_MULTIPLE
    config: MPRConfig

    def __init__(self, config: MPRConfig | None = None) -> None:
        super().__init__()
        self.config = config or MPRConfig()
        fine, coarse = self.config.fine_channels, self.config.coarse_channels
        self.fine_features, self.coarse_features = _features(1, fine), _features(fine, coarse)
        self.coarse = Scale(1 + coarse, self.config)
        self.fine = Scale(1 + fine + 3 + self.config.matching_channels[-1], self.config)

    def predict(self, moving: Tensor, fixed: Tensor, *, condition: float | Tensor | None = None) -> Tensor:
        """See :class:`Network`."""
        require_size(moving, self.size_multiple)
        of_moving, of_fixed = self.fine_features(moving), self.fine_features(fixed)
        coarse_moving, coarse_fixed = self.coarse_features(of_moving), self.coarse_features(of_fixed)
        field, features = self.coarse(torch.cat([_cost(coarse_fixed, coarse_moving), coarse_fixed], dim=1), None)
        field = _doubled(field)
        cost = _cost(of_fixed, _sampled(of_moving.float(), field))
        field, _ = self.fine(torch.cat([cost, of_fixed, field, _doubled(features)], dim=1), field)
        return _as_unit_field(_doubled(field))


def _features(inputs: int, outputs: int) -> nn.Sequential:
    """Half the size, then two convolutions."""
    layers: list[nn.Module] = [nn.Conv3d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
    for _ in range(2):
        layers += [nn.Conv3d(outputs, outputs, 3, padding=1), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


def _cost(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of two features at every voxel, ``(N, 1, d, h, w)``."""
    return (a - b).abs().sum(dim=1, keepdim=True)


def _doubled(volume: Tensor) -> Tensor:
    """Twice the size and, as a voxel field has to, twice the values; the authors treat features alike."""
    return functional.interpolate(2 * volume, scale_factor=2.0, mode="trilinear", align_corners=True)


def _positions(field: Tensor) -> Tensor:
    """Where a voxel field points to, ``(N, d, h, w, 3)``, with -1 and 1 at the centres of the outer voxels."""
    grid = identity_grid((field.shape[2], field.shape[3], field.shape[4]), device=field.device, dtype=field.dtype)
    return grid + voxel_to_unit(field).permute(0, 2, 3, 4, 1)


def _sampled(volume: Tensor, field: Tensor) -> Tensor:
    """Volume through a voxel field as the published weights learned it.

    The authors compute positions for centres of the outer voxels at -1 and 1, but sample with their outer faces
    there. So zero does not stay where it is; the network learned to make up for that.
    """
    return functional.grid_sample(volume, _positions(field), padding_mode="zeros", align_corners=False)


def _as_unit_field(field: Tensor) -> Tensor:
    """The unit field that samples where `_sampled` does."""
    sizes = torch.tensor(field.shape[:1:-1], device=field.device, dtype=field.dtype)  # W, H, D
    positions = ((_positions(field) + 1) * sizes - 1) / (sizes - 1) - 1
    grid = identity_grid((field.shape[2], field.shape[3], field.shape[4]), device=field.device, dtype=field.dtype)
    return (positions - grid).permute(0, 4, 1, 2, 3)
