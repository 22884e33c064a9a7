"""ULAE-net, a network with an encoder for each image and three decoders that take turns.

The two encoders are uncoupled: the fixed image passes plain convolutions, the moving image passes stages that look
far around every voxel and take in what the fixed branch found at the same scale. The decoders work at 1/4, 1/2 and
full resolution, each on the moving image and its features as the fields found so far warp them; the fields are
composed. Source: Shu et al., "Medical image registration based on uncoupled learning and accumulative enhancement"
(MICCAI 2021).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nio_pydra.networks.interface import Network, require_size
from nio_pydra.spatial.unit_grid import upsample, voxel_to_unit, warp

__all__ = ["ULAE", "ULAEConfig"]

SLOPE = 0.2  # of every LeakyReLU
DILATIONS = (4, 3, 2, 1)  # of the moving branch's stages, at 1/2 to 1/16; each has convolutions of 1, 2 and 3 times it
DECODERS = 3  # at 1/4, 1/2 and full resolution
FIRST_WEIGHTS = 1e-5  # standard deviation of the weights that make a field, before training


@dataclass(frozen=True)
class ULAEConfig:
    """Shape of a network.

    Attributes
    ----------
    channels : int
        Width of the first encoder stage and of the decoders' ends; everything between is twice as wide.
    """

    conditional: ClassVar[bool] = False
    channels: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.channels, int) or self.channels < 1:
            raise ValueError(f"channels is {self.channels!r}: expected a whole number above zero")

    def to_dict(self) -> dict[str, object]:
        """Return plain values, as stored in a checkpoint's metadata."""
        return asdict(self)


class ConvolutionBlock(nn.Sequential):
    """Convolution, instance normalisation, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.InstanceNorm3d(outputs),
            nn.LeakyReLU(SLOPE, inplace=True),
        )


class MovingStage(nn.Module):
    """Halve the moving branch's features: near and far surroundings, their mean, and the fixed branch's features.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    dilation : int
        Of the narrowest of the three dilated convolutions.
    """

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.of_mean = nn.Conv3d(inputs, outputs, 1)
        self.of_voxel = nn.Conv3d(inputs, outputs, 1, stride=2)
        self.of_surroundings = nn.ModuleList(
            nn.Conv3d(inputs, outputs, 3, stride=2, padding=reach, dilation=reach)
            for reach in (1, dilation, 2 * dilation, 3 * dilation)
        )
        self.fuse = nn.Conv3d(7 * outputs, outputs, 1)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Return ``(N, outputs, d/2, h/2, w/2)`` of moving features ``(N, inputs, d, h, w)`` and fixed ones."""
        mean = self.of_mean(moving.mean(dim=(2, 3, 4), keepdim=True)).expand(-1, -1, *fixed.shape[2:])
        views = [self.of_voxel(moving), *(layer(moving) for layer in self.of_surroundings)]
        return functional.leaky_relu_(self.fuse(torch.cat([mean, *views, fixed], dim=1)), SLOPE)


class Encoder(nn.Module):
    """Features of both images at 1/2 to 1/16, fine to coarse."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (1, channels, *[2 * channels] * (len(DILATIONS) - 1))
        pairs = list(pairwise(widths))
        self.fixed = nn.ModuleList(ConvolutionBlock(a, b, stride=2) for a, b in pairs)
        self.moving = nn.ModuleList(MovingStage(a, b, d) for (a, b), d in zip(pairs, DILATIONS, strict=True))
        self.join = nn.ModuleList(ConvolutionBlock(2 * width, width) for width in widths[1:])

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        of_moving, of_fixed = [], []
        for fixed_stage, moving_stage in zip(self.fixed, self.moving, strict=True):
            fixed = fixed_stage(fixed)
            moving = moving_stage(moving, fixed)
            of_moving.append(moving)
            of_fixed.append(fixed)
        return of_moving, of_fixed


class Decoder(nn.Module):
    """From 1/16 up to a field at one resolution.

    Parameters
    ----------
    channels : int
        Of the encoder's first stage.
    position : int
        0 to 2: the field has 1/4, 1/2 or full resolution.
    """

    def __init__(self, channels: int, position: int) -> None:
        super().__init__()
        wide = 2 * channels
        joined = [wide, wide, channels][: position + 1]  # at 1/8, 1/4, 1/2
        self.deepest = ConvolutionBlock(wide, wide)
        self.steps = nn.ModuleList(ConvolutionBlock(wide + width, wide) for width in joined)
        self.narrow = nn.Sequential(ConvolutionBlock(wide, wide), ConvolutionBlock(wide, channels))
        self.beside_images = ConvolutionBlock(channels + 2, channels)
        self.field = nn.Conv3d(channels, 3, 3, padding=1)
        with torch.no_grad():
            self.field.weight.normal_(std=FIRST_WEIGHTS)
            self.field.bias.zero_()  # type: ignore[union-attr]

    def forward(self, features: list[Tensor], moving: Tensor, fixed: Tensor) -> Tensor:
        """Predict a unit field.

        Parameters
        ----------
        features : list of Tensor
            Of both images, joined, at 1/16 and finer; one finer than the decoder's images is left out.
        moving, fixed : Tensor
            ``(N, 1, d, h, w)`` at the decoder's resolution.

        Returns
        -------
        Tensor
            ``(N, 3, d, h, w)`` float32.
        """
        x = self.deepest(features[0])
        for step, skipped in zip(self.steps, features[1:], strict=True):
            x = step(torch.cat([_doubled(x), skipped], dim=1))
        x = self.beside_images(torch.cat([_doubled(self.narrow(x)), moving, fixed], dim=1))
        return voxel_to_unit(self.field(x).float())


class ULAE(Network):
    """ULAE-net.

    Parameters
    ----------
    config : ULAEConfig, optional
        Shape of the network; default: that of the paper.
    """

    architecture: ClassVar[str] = "ulae"
    config_class: ClassVar[type[ULAEConfig]] = ULAEConfig
    size_multiple: ClassVar[int] = 2 ** len(DILATIONS)
    config: ULAEConfig

    def __init__(self, config: ULAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or ULAEConfig()
        self.encoder = Encoder(self.config.channels)
        self.decoders = nn.ModuleList(Decoder(self.config.channels, position) for position in range(DECODERS))

    def predict(self, moving: Tensor, fixed: Tensor, *, condition: float | Tensor | None = None) -> Tensor:
        """See :class:`Network`."""
        require_size(moving, self.size_multiple)
        of_moving, of_fixed = self.encoder(moving, fixed)
        field: Tensor | None = None  # at the decoder's resolution
        for position, decoder in enumerate(self.decoders):
            if field is not None:
                field = upsample(field)
            halvings = DECODERS - 1 - position
            images = (_halved(_warped(moving, field, halvings), halvings), _halved(fixed, halvings))
            features = []
            for scale in range(len(DILATIONS) - 1, halvings - 1, -1):  # 1/16 and finer, below the decoder's own
                warped = _warped(of_moving[scale], field, halvings - scale - 1)
                features.append(self.encoder.join[scale](torch.cat([warped, of_fixed[scale]], dim=1)))
            residual = decoder(features, *images)
            field = residual if field is None else residual + warp(field, residual)
        assert field is not None
        return field


def _warped(volume: Tensor, field: Tensor | None, doublings: int) -> Tensor:
    """Volume through a unit field that has another size: `doublings` times twice as large, or half where negative."""
    if field is None:
        return volume
    return warp(volume.float(), upsample(field, 2**doublings) if doublings > 0 else _halved(field, -doublings))


def _halved(volume: Tensor, times: int) -> Tensor:
    return functional.avg_pool3d(volume, 2**times) if times else volume


def _doubled(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2.0, mode="trilinear", align_corners=False)
