"""From a label map to an image: a random anatomy, contrast, brain extraction and scanner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nio_pydra.spatial.conform import scale_intensities
from nio_pydra.spatial.unit_grid import identity_grid, integrate, voxel_to_unit
from nio_pydra.training.maps import SIDES, TISSUES, VENTRICLES, brain, tissue_index

__all__ = [
    "Anatomy",
    "Pose",
    "SynthesisSettings",
    "draw_contrast",
    "draw_pose",
    "posed_positions",
    "synthesise",
]

CONTROL_SPACING = 8  # mm between the nodes of the random warps
MASK_BLUR = 9  # mm, width of the box that turns a brain mask into a ramp


@dataclass(frozen=True)
class SynthesisSettings:
    """How much images differ; every number is the largest or typical size of one random change.

    Attributes
    ----------
    t1_share : float
        Share of pairs with the contrast of a T1-weighted image; the others draw a random mean for every tissue.
    warp_mm, fine_warp_mm : float
        Standard deviation of the random warp at scales of about 24 and 12 mm.
    ventricles_mm : float
        Largest push of the tissue around the lateral ventricles.
    pose_degrees, pose_mm, pose_scale : float
        Standard deviation of the rotation, shift and (as a share) scaling of both images of a pair together.
    residual : float
        The share of the pose that each image gets on top, as left by an imperfect affine.
    bias, noise, texture, gamma : float
        Standard deviation of the bias field's and gamma's logarithm; largest white and largest smooth noise.
    blur_voxels : float
        Largest Gaussian blur, in voxels of the image.
    thick_share, thickest_mm : float
        Share of images of lower resolution than their grid, in all directions or in one, and the largest voxels
        that these are made of; the smallest measure 1 mm.
    """

    t1_share: float = 0.7
    warp_mm: float = 2.5
    fine_warp_mm: float = 1.2
    ventricles_mm: float = 6.0
    pose_degrees: float = 5.0
    pose_mm: float = 4.0
    pose_scale: float = 0.07
    residual: float = 0.25
    bias: float = 0.15
    noise: float = 0.04
    texture: float = 0.04
    gamma: float = 0.12
    blur_voxels: float = 0.7
    thick_share: float = 0.3
    thickest_mm: float = 3.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            limits = {"t1_share": (0, 1), "thick_share": (0, 1), "thickest_mm": (1, 20)}.get(name, (0, 1000))
            if not isinstance(value, int | float) or not limits[0] <= value <= limits[1]:
                raise ValueError(f"{name} is {value!r}: expected a number from {limits[0]} to {limits[1]}")


class Anatomy:
    """One label map, with what synthesis needs of it.

    Parameters
    ----------
    labels : ndarray
        ``(D, H, W)`` FreeSurfer labels, 1 mm.
    """

    def __init__(self, labels: NDArray[np.int16]) -> None:
        inside = brain(labels)
        self.labels = labels
        self.tissues = tissue_index()[labels]
        ramp = functional.avg_pool3d(
            torch.from_numpy(inside.astype(np.float32))[None, None], MASK_BLUR, 2, MASK_BLUR // 2
        )
        self.ramp = ramp.half()
        self.push = _push_from_ventricles(np.isin(labels, VENTRICLES))


@dataclass(frozen=True)
class Pose:
    """An affine of the brain about the middle of the volume: matrix (3, 3) and shift (3,) in mm along D, H, W."""

    matrix: NDArray[np.float64]
    shift: NDArray[np.float64]

    def after(self, other: Pose) -> Pose:
        """The pose that applies `other` first."""
        return Pose(self.matrix @ other.matrix, self.matrix @ other.shift + self.shift)


def draw_pose(rng: np.random.Generator, settings: SynthesisSettings, share: float = 1.0) -> Pose:
    """Draw a pose with `share` times the settings' standard deviations."""
    angles = np.deg2rad(settings.pose_degrees * share) * rng.standard_normal(3)
    skew = np.array([[0, -angles[2], angles[1]], [angles[2], 0, -angles[0]], [-angles[1], angles[0], 0]])
    rotation = np.linalg.solve(np.eye(3) + skew / 2, np.eye(3) - skew / 2)  # Cayley: orthogonal, no exponential
    common, apart = rng.standard_normal(), rng.standard_normal(3)
    scales = np.exp(settings.pose_scale * share * (common + 0.5 * apart))
    return Pose(rotation @ np.diag(scales), settings.pose_mm * share * rng.standard_normal(3))


def draw_contrast(rng: np.random.Generator, settings: SynthesisSettings) -> NDArray[np.float32]:
    """Draw the mean intensity of each of `TISSUES`."""
    if rng.random() < settings.t1_share:
        means = [rng.normal(tissue.t1, tissue.t1_sd) for tissue in TISSUES]
    else:
        means = list(rng.uniform(20, 220, len(TISSUES)))
    return np.clip(np.asarray(means, np.float32), 5, 255)


def synthesise(
    anatomy: Anatomy,
    contrast: NDArray[np.float32],
    pose: Pose,
    rng: np.random.Generator,
    settings: SynthesisSettings,
    *,
    spacing: int = 1,
    plain: bool = False,
) -> tuple[Tensor, Tensor]:
    """Make an image of an anatomy.

    Parameters
    ----------
    anatomy : Anatomy
        What to show.
    contrast : ndarray
        Mean intensity of each of `TISSUES`.
    pose : Pose
        Where the brain lies.
    rng : numpy.random.Generator
        Source of all that is random here; its state alone decides the result.
    settings : SynthesisSettings
        Sizes of the changes.
    spacing : {1, 2}
        Voxel size of the image in mm; 2 gives what average pooling would make of the image at 1 mm.
    plain : bool
        Leave the shape as it is (no warp, no flip): for validation on real anatomies.

    Returns
    -------
    image : Tensor
        ``(1, 1, D, H, W)`` float32 in [0, 1], background 0.
    labels : Tensor
        ``(1, 1, D, H, W)`` float32, FreeSurfer labels of the same grid.
    """
    full = anatomy.labels.shape
    shape = (full[0] // spacing, full[1] // spacing, full[2] // spacing)
    grid, flipped = _positions(anatomy, pose, rng, settings, shape, plain)

    jitter = np.exp(0.03 * rng.standard_normal(len(TISSUES))).astype(np.float32)
    means = torch.from_numpy((contrast * jitter)[anatomy.tissues])[None, None] / 255
    if spacing == 2:
        means = functional.avg_pool3d(means, 3, 1, 1, count_include_pad=False)
    image = functional.grid_sample(means, grid, padding_mode="border", align_corners=True)
    image = image.clamp_min(1e-3) ** float(np.exp(settings.gamma * rng.standard_normal()))

    image += rng.uniform(0, settings.texture) * _noise(rng, tuple(n // 2 for n in shape), shape)
    image *= torch.exp(settings.bias * _noise(rng, (4, 4, 4), shape))
    image = _blur(image, rng.uniform(0, settings.blur_voxels))
    if rng.random() < settings.thick_share:
        axes = range(3) if rng.random() < 0.5 else [int(rng.integers(3))]
        image = _coarsen(image, axes, rng.uniform(1, settings.thickest_mm) / spacing)
    white = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))[None, None]
    image = (image + rng.uniform(0, settings.noise) * white).clamp_min(1e-3)

    ramp = functional.grid_sample(anatomy.ramp.float(), grid, padding_mode="zeros", align_corners=True)
    level = rng.uniform(0.3, 0.6) + rng.uniform(0, 0.1) * _noise(rng, (9, 10, 12), shape)
    image = torch.where(ramp > level.clamp(0.1, 0.8), image, 0.0)
    if spacing == 2:
        image = image * ((ramp - level) * 6 + 0.5).clamp(0, 1)  # pooling blurs the mask's edge as well

    labels = torch.from_numpy((_swapped(anatomy.labels) if flipped else anatomy.labels).astype(np.float32))[None, None]
    moved = functional.grid_sample(labels, grid, mode="nearest", padding_mode="zeros", align_corners=True)
    return scale_intensities(image[0, 0].numpy(), "percentile"), moved


def posed_positions(pose: Pose, full: tuple[int, ...], shape: tuple[int, ...] | None = None) -> Tensor:
    """Where each voxel of an image looks into a volume of 1 mm, for a brain in a pose.

    Parameters
    ----------
    pose : Pose
        Of the brain.
    full : tuple of int
        (D, H, W) of the volume.
    shape : tuple of int, optional
        Of the image, which spans the volume from corner to corner; default: the same.

    Returns
    -------
    Tensor
        Unit coordinates ``(1, D, H, W, 3)``, the last axis ordered W, H, D.
    """
    to_unit = np.diag(2 / (np.array(full) - 1))  # millimetres about the middle
    matrix = to_unit @ pose.matrix @ np.linalg.inv(to_unit)
    shift = to_unit @ pose.shift
    affine = torch.from_numpy(np.hstack([matrix[::-1, ::-1], shift[::-1, None]])).float()
    return functional.affine_grid(affine[None], [1, 1, *(shape or full)], align_corners=True)


def _positions(
    anatomy: Anatomy,
    pose: Pose,
    rng: np.random.Generator,
    settings: SynthesisSettings,
    shape: tuple[int, int, int],
    plain: bool,
) -> tuple[Tensor, bool]:
    """Where each voxel of the image looks into the label map, ``(1, D, H, W, 3)``, and whether that swaps the sides."""
    full = np.array(anatomy.labels.shape)
    grid = posed_positions(pose, anatomy.labels.shape, shape)
    if plain:
        return grid, False
    coarse = tuple(int(n) for n in full // CONTROL_SPACING)
    velocity = torch.cat([
        settings.warp_mm * _noise(rng, tuple(n // 3 for n in coarse), coarse, channels=1)
        + settings.fine_warp_mm * _noise(rng, tuple(n * 2 // 3 for n in coarse), coarse, channels=1)
        for _ in range(3)
    ], dim=1)  # fmt: skip
    velocity = velocity + rng.uniform(-0.4, 1) * settings.ventricles_mm * anatomy.push
    # Nodes count in steps of the coarse grid; voxel_to_unit expects just that.
    field = integrate(voxel_to_unit(velocity / CONTROL_SPACING), steps=5)
    warped = identity_grid(coarse, device=field.device) + field.permute(0, 2, 3, 4, 1)
    grid = functional.grid_sample(
        warped.permute(0, 4, 1, 2, 3), grid, padding_mode="border", align_corners=True
    ).permute(0, 2, 3, 4, 1)
    flipped = bool(rng.random() < 0.5)
    if flipped:
        grid = grid * torch.tensor([1.0, 1.0, -1.0])  # left and right lie along the first axis
    return grid, flipped


def _swapped(labels: NDArray[np.int16]) -> NDArray[np.int16]:
    """The same labels with left called right."""
    table = np.arange(1000, dtype=np.int16)
    for left, right in SIDES:
        table[[left, right]] = right, left
    return table[labels]


def _noise(rng: np.random.Generator, nodes: tuple[int, ...], shape: tuple[int, ...], channels: int = 1) -> Tensor:
    """Smooth noise of about unit variance, ``(1, channels, D, H, W)``."""
    values = torch.from_numpy(rng.standard_normal((1, channels, *nodes), dtype=np.float32))
    return 1.5 * functional.interpolate(values, size=shape, mode="trilinear", align_corners=True)


def _blur(image: Tensor, sigma: float) -> Tensor:
    if sigma < 0.2:
        return image
    edge = float(np.exp(-0.5 / sigma**2))
    kernel = torch.tensor([edge, 1, edge]) / (1 + 2 * edge)
    for axis in range(3):
        view = [1, 1, 1, 1, 1]
        view[2 + axis] = 3
        padding = [0, 0, 0]
        padding[axis] = 1
        image = functional.conv3d(image, kernel.view(view), padding=padding)
    return image


def _coarsen(image: Tensor, axes: Iterable[int], factor: float) -> Tensor:
    """What is left of an image that was taken in voxels `factor` times as long along some axes."""
    shape = list(image.shape[2:])
    small = [max(1, round(n / max(factor, 1))) if axis in axes else n for axis, n in enumerate(shape)]
    taken = functional.interpolate(image, small, mode="area")
    return functional.interpolate(taken, shape, mode="trilinear", align_corners=False)


def _push_from_ventricles(ventricles: NDArray[np.bool_]) -> Tensor:
    """Velocity ``(1, 3, d, h, w)`` at the control nodes, at most 1, that enlarges the ventricles (looks into them)."""
    from scipy.ndimage import gaussian_filter

    coarse = functional.adaptive_avg_pool3d(
        torch.from_numpy(ventricles.astype(np.float32))[None, None],
        tuple(n // CONTROL_SPACING for n in ventricles.shape),
    )
    slopes = np.stack(np.gradient(gaussian_filter(coarse[0, 0].numpy(), 1.0))).astype(np.float32)
    largest = np.sqrt((slopes**2).sum(0)).max()
    return torch.from_numpy(slopes / max(float(largest), 1e-6))[None]
