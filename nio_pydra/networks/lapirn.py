"""LapIRN, the Laplacian pyramid registration network, and its conditional form.

Three levels work at 1/4, 1/2 and full resolution; each adds a residual to the upsampled field of the level below.
One :class:`Level` class serves all of them. Source: Mok & Chung, "Large Deformation Diffeomorphic Image Registration
with Laplacian Pyramid Networks" (MICCAI 2020) and "Conditional Deformable Image Registration with Convolutional
Neural Network" (MICCAI 2021).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nio_pydra.networks.convolutions import after_upsampling, two_convolutions
from nio_pydra.networks.interface import Network, require_size
from nio_pydra.spatial.unit_grid import integrate, upsample, warp

__all__ = ["SIZE_MULTIPLE", "LapIRN", "LapIRNConfig", "Level", "LevelOutput"]

SLOPE = 0.2  # of every LeakyReLU
RANGE = 0.4  # largest residual of a level, in units of half the image
BLOCKS = 5  # residual blocks of a level
LATENT = 64  # width of the condition's embedding
LEVELS = 3
SIZE_MULTIPLE = 8  # two poolings and one strided convolution must divide every axis


@dataclass(frozen=True)
class LapIRNConfig:
    """Shape of a network.

    Attributes
    ----------
    variant : {"disp", "diff"}
        Whether the levels predict displacements or stationary velocities (integrated by scaling and squaring).
    encoder_channels, channels : int
        Width of the input encoder and of the residual body.
    head_channels : tuple of int
        Width handed on by each level's transposed convolution.
    conditional : bool
        Whether the residual blocks are modulated by the regularisation weight.
    """

    variant: Literal["disp", "diff"] = "disp"
    encoder_channels: int = 28
    channels: int = 28
    head_channels: tuple[int, int, int] = (28, 28, 28)
    conditional: bool = False

    def __post_init__(self) -> None:
        if self.variant not in ("disp", "diff"):
            raise ValueError(f"variant is {self.variant!r}: expected 'disp' or 'diff'")
        if min(self.encoder_channels, self.channels, *self.head_channels) < 1:
            raise ValueError("channel numbers must be positive")
        if len(self.head_channels) != LEVELS:
            raise ValueError(f"head_channels needs {LEVELS} numbers")

    @classmethod
    def standard(cls, start_channel: int = 7, **overrides: object) -> LapIRNConfig:
        """Return the authors' plain network: every width is four times `start_channel`."""
        width = 4 * start_channel
        return cls(
            encoder_channels=width,
            channels=width,
            head_channels=(width,) * LEVELS,  # type: ignore[arg-type]
            **overrides,  # type: ignore[arg-type]
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values, as stored in a checkpoint's metadata."""
        return asdict(self)


@dataclass(frozen=True)
class LevelOutput:
    """What one level predicts, at that level's resolution.

    Attributes
    ----------
    field : Tensor
        Unit displacement field ``(N, 3, d, h, w)``.
    parameters : Tensor
        What the level adds up: the velocity for the "diff" variant, the displacement itself for "disp".
    features : Tensor
        ``(N, C, d/2, h/2, w/2)``: what the level's `up` turns into the embedding for the level above.
    """

    field: Tensor
    parameters: Tensor
    features: Tensor


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _kernels(layers: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weights of the two convolutions around a LeakyReLU."""
    return layers[0].weight, layers[2].weight  # type: ignore[return-value]


class ConditionalNorm(nn.Module):
    """Instance normalisation whose scale and shift come from the embedded regularisation weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.style = nn.Linear(LATENT, 2 * channels)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        gamma, beta = self.style(latent)[:, :, None, None, None].chunk(2, dim=1)
        return (1 + gamma) * functional.instance_norm(x) + beta


class ResidualBlock(nn.Module):
    """Two pre-activated convolutions around an identity, optionally modulated by a condition."""

    def __init__(self, channels: int, conditional: bool) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels)
        self.conv2 = _conv(channels, channels)
        self.norm1 = ConditionalNorm(channels) if conditional else None
        self.norm2 = ConditionalNorm(channels) if conditional else None
        self.mapping: nn.Sequential | None = None
        if conditional:
            layers: list[nn.Module] = []
            for width in (1, LATENT, LATENT, LATENT):
                layers += [nn.Linear(width, LATENT), nn.LeakyReLU(SLOPE)]
            self.mapping = nn.Sequential(*layers)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if self.mapping is None or self.norm1 is None or self.norm2 is None:
            return two_convolutions([x], [self.conv1.weight], self.conv2.weight, SLOPE, activate_inputs=True).add_(x)
        latent = self.mapping(condition)
        y = self.conv1(functional.leaky_relu_(self.norm1(x, latent), SLOPE))
        y = self.conv2(functional.leaky_relu_(self.norm2(y, latent), SLOPE))
        return y.add_(x)


class Level(nn.Module):
    """The body shared by all three levels.

    Parameters
    ----------
    inputs : int
        Input channels: moving and fixed (2), above the first level also the upsampled field from below (5).
    head_channels : int
        Output width of the transposed convolution.
    config : LapIRNConfig
        Shape of the network.
    """

    def __init__(self, inputs: int, head_channels: int, config: LapIRNConfig) -> None:
        super().__init__()
        width, encoder = config.channels, config.encoder_channels
        joined = head_channels + encoder
        # Encoder and head are run by `two_convolutions`; the LeakyReLU keeps the checkpoints' numbering.
        self.encoder = nn.Sequential(_conv(inputs, encoder), nn.LeakyReLU(SLOPE, inplace=True), _conv(encoder, encoder))
        self.down = _conv(encoder, width, stride=2)
        self.blocks = nn.ModuleList(ResidualBlock(width, config.conditional) for _ in range(BLOCKS))
        self.up = nn.ConvTranspose3d(width, head_channels, 2, stride=2, bias=False)
        self.head = nn.Sequential(_conv(joined, joined // 2), nn.LeakyReLU(SLOPE, inplace=True), _conv(joined // 2, 3))

    def forward(self, x: Tensor, below: Tensor | None, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predict a residual unit field (float32) and the features that `up` makes the level's embedding of.

        Parameters
        ----------
        x : Tensor
            ``(N, inputs, d, h, w)``.
        below : Tensor, optional
            Embedding of the level below, ``(N, C, d/2, h/2, w/2)``.
        condition : Tensor, optional
            Regularisation weight ``(N, 1)`` of a conditional network.
        """
        first, second = _kernels(self.encoder)
        skip = two_convolutions([x], [first], second, SLOPE)
        y = self.down(skip)
        if below is not None:
            y = y + below
        for block in self.blocks:
            y = functional.leaky_relu_(block(y, condition), SLOPE)
        first, second = _kernels(self.head)  # of the embedding and the skipped features, joined
        of_embedding, of_skip = first.split([self.up.out_channels, skip.shape[1]], dim=1)
        kernels = [after_upsampling(self.up.weight, of_embedding), of_skip]
        residual = two_convolutions([y, skip], kernels, second, SLOPE)
        return RANGE * functional.softsign(residual.float()), y


class LapIRN(Network):
    """Laplacian pyramid image registration network.

    Parameters
    ----------
    config : LapIRNConfig
        Shape of the network; 923,748 parameters for ``LapIRNConfig.standard(7)``.
    """

    architecture: ClassVar[str] = "lapirn"
    config_class: ClassVar[type[LapIRNConfig]] = LapIRNConfig
    size_multiple: ClassVar[int] = SIZE_MULTIPLE
    config: LapIRNConfig

    def __init__(self, config: LapIRNConfig | None = None) -> None:
        super().__init__()
        self.config = config or LapIRNConfig()
        self.levels = nn.ModuleList(
            Level(2 if i == 0 else 5, self.config.head_channels[i], self.config) for i in range(LEVELS)
        )

    def predict(self, moving: Tensor, fixed: Tensor, *, condition: float | Tensor | None = None) -> Tensor:
        """See :class:`Network`; of the "diff" variant it is the integrated field."""
        field: Tensor = self(moving, fixed, condition=condition)[-1].field
        return field

    def forward(
        self, moving: Tensor, fixed: Tensor, *, levels: int = LEVELS, condition: float | Tensor | None = None
    ) -> list[LevelOutput]:
        """Predict the fields of the first `levels` levels, coarse to fine.

        Parameters
        ----------
        moving, fixed : Tensor
            ``(N, 1, D, H, W)`` at full resolution, float32, axes in the network's orientation, every axis a multiple
            of 8, intensities scaled as the checkpoint's metadata says.
        levels : int
            How many levels to run (1 to 3).
        condition : float or Tensor, optional
            Regularisation weight in [0, 1] of a conditional network, a tensor being ``(N, 1)``.

        Returns
        -------
        list of LevelOutput
            Level ``i`` is at resolution ``1 / 2**(2 - i)``.
        """
        return self.on_pyramid(image_pyramid(moving), image_pyramid(fixed), levels=levels, condition=condition)

    def on_pyramid(
        self,
        moving: list[Tensor],
        fixed: list[Tensor],
        *,
        levels: int = LEVELS,
        condition: float | Tensor | None = None,
    ) -> list[LevelOutput]:
        """As :meth:`forward`, on pyramids made once by :func:`image_pyramid` (coarse to fine)."""
        code = self.code(condition, moving[0])
        outputs: list[LevelOutput] = []
        for level, m, f in zip(self.levels[:levels], moving, fixed, strict=False):
            if not outputs:
                parameters, features = level(torch.cat([m, f], dim=1), None, code)
            else:
                below = outputs[-1]
                carried = upsample(below.parameters)
                # The authors upsample the integrated field for warping and hand on the velocity itself.
                moved = warp(m, carried if self.config.variant == "disp" else upsample(below.field))
                embedding = self.embedding(below, len(outputs))
                residual, features = level(torch.cat([moved, f, carried], dim=1), embedding, code)
                parameters = carried + residual
            field = parameters if self.config.variant == "disp" else integrate(parameters)
            outputs.append(LevelOutput(field, parameters, features))
        return outputs

    def embedding(self, output: LevelOutput, level: int) -> Tensor:
        """What a level (1 or 2) hands to the one above, ``(N, C, d, h, w)`` at its own resolution."""
        up: nn.Module = self.levels[level - 1].up  # type: ignore[assignment]
        embedding: Tensor = up(output.features)
        return embedding

    def code(self, value: float | Tensor | None, like: Tensor) -> Tensor | None:
        """The condition as the levels take it, ``(N, 1)`` for images of N pairs; None for a plain network."""
        if not self.config.conditional:
            return None
        if value is None:
            raise ValueError("a conditional network needs the regularisation weight (condition=...)")
        if not isinstance(value, Tensor):
            value = torch.full((like.shape[0], 1), float(value))
        return value.to(like.device, torch.float32)


def image_pyramid(image: Tensor, levels: int = LEVELS) -> list[Tensor]:
    """Average-pooled copies of an image, coarse to fine, the last one being the image itself.

    Raises
    ------
    ValueError
        If an axis is not a multiple of 8.
    """
    require_size(image, SIZE_MULTIPLE)
    pyramid = [image]
    for _ in range(levels - 1):
        pyramid.append(functional.avg_pool3d(pyramid[-1], 3, stride=2, padding=1, count_include_pad=False))
    return pyramid[::-1]
