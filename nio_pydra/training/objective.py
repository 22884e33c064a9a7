"""The loss of one pair at one level, on the whole image or on a crop of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nio_pydra.losses import diffusion, lncc
from nio_pydra.networks import LapIRN
from nio_pydra.networks.lapirn import image_pyramid
from nio_pydra.spatial.unit_grid import identity_grid, upsample, voxel_scale, warp
from nio_pydra.training.pairs import ImagePair
from nio_pydra.training.settings import Stage

__all__ = ["objective"]

#: The authors' code multiplies a unit field by the image's size before it takes differences, which is twice the
#: displacement in voxels. Their lambda weighs squares of that, four times those of voxels.
AUTHORS_DIFFUSION_SCALE = 4.0
DRAWS = 50  # of a crop, until one holds enough of the brain
STRUCTURES_AT_A_TIME = 12  # drawn anew for every pair: all of them would cost more than the network


def objective(
    network: LapIRN,
    pair: ImagePair,
    stage: Stage,
    smoothness: float,
    rng: np.random.Generator,
    *,
    label_weight: float = 0.0,
) -> Tensor:
    """The loss of one pair: LNCC in a pyramid of windows (3, 5/3 or 7/5/3), diffusion, and the overlap of labels.

    Parameters
    ----------
    network : LapIRN
        Of which `stage.level` levels are run.
    pair : ImagePair
        At 2 mm for levels 1 and 2, at 1 mm for level 3.
    stage : Stage
        Says which level, and whether a crop of it is enough.
    smoothness : float
        lambda; a conditional network is told.
    rng : numpy.random.Generator
        Chooses the crop and the labels.
    label_weight : float
        Of 1 - Dice; 0, or a pair without labels, leaves that term out.
    """
    pyramids = max(2, stage.level)
    moving, fixed = (image_pyramid(image, pyramids) for image in (pair.moving, pair.fixed))
    top = stage.level - 1
    target, source = fixed[top], moving[top]
    if not stage.crop:
        box: tuple[slice, ...] = (slice(None),) * 5
        unit = network.on_pyramid(moving, fixed, levels=stage.level, condition=smoothness)[-1].field
        strain_unit = unit
    else:
        with torch.no_grad():
            below = network.on_pyramid(moving, fixed, levels=top, condition=smoothness)[-1]
            carried = upsample(below.parameters)
            moved = warp(source, carried)
            embedding = network.embedding(below, top)
        box, half = _draw_crop(target, stage.crop, rng)
        network_input = torch.cat([moved, target, carried], dim=1)[box]
        residual, _ = network.levels[top](network_input, embedding[half], network.code(smoothness, target))
        unit = carried[box] + residual
        # The units of the whole volume, in those of the crop, so that strain stays strain.
        whole, part = (voxel_scale(x.shape[2:], device=unit.device) for x in (target, target[box]))
        strain_unit = unit * (whole / part)

    def carry(volume: Tensor) -> Tensor:
        if not stage.crop:
            return warp(volume, unit)
        grid = identity_grid((target.shape[2], target.shape[3], target.shape[4]), device=unit.device)
        positions = grid[:, box[2], box[3], box[4]] + unit.permute(0, 2, 3, 4, 1)
        return functional.grid_sample(volume, positions, padding_mode="border", align_corners=True)

    warped, similarity_target = carry(source), target[box]
    similarity = unit.new_zeros(())
    for i in range(stage.level):
        if i:
            warped, similarity_target = (
                functional.avg_pool3d(x, 3, 2, 1, count_include_pad=False) for x in (warped, similarity_target)
            )
        # Weights that add up to 1, so that lambda weighs the same at every level.
        weight = 2**-i / (2 - 2 ** (1 - stage.level))
        similarity = similarity + weight * lncc(similarity_target, warped, window=2 * (stage.level - i) + 1)
    loss = (1 - smoothness) * similarity + smoothness * AUTHORS_DIFFUSION_SCALE * diffusion(strain_unit)
    if label_weight and pair.moving_labels is not None and pair.fixed_labels is not None:
        # Crops are taken in the pair's own voxels, so the box serves its labels as they are.
        shown = _draw_structures(pair.moving_labels, pair.fixed_labels[box], rng)
        if shown.numel():
            masks = ((labels == shown).to(source.dtype) for labels in (pair.moving_labels, pair.fixed_labels))
            moving_share, fixed_share = (image_pyramid(mask, pyramids)[top] for mask in masks)
            loss = loss + label_weight * (1 - _soft_dice(fixed_share[box], carry(moving_share)))
    return loss


def _draw_structures(moving: Tensor, fixed: Tensor, rng: np.random.Generator) -> Tensor:
    """Labels of some of the structures that both volumes show, ``(1, C, 1, 1, 1)``."""
    common = np.intersect1d(*(labels.unique().cpu().numpy() for labels in (moving, fixed)))
    common = common[common > 0]
    drawn = rng.choice(common, min(STRUCTURES_AT_A_TIME, len(common)), replace=False)
    return torch.from_numpy(drawn).to(moving).view(1, -1, 1, 1, 1)


def _soft_dice(a: Tensor, b: Tensor) -> Tensor:
    """Mean overlap over channels, of voxels that belong to a structure in part."""
    axes = (0, 2, 3, 4)
    return (2 * (a * b).sum(axes) / ((a * a).sum(axes) + (b * b).sum(axes) + 1)).mean()  # 1: finite where empty


def _draw_crop(volume: Tensor, edge: int, rng: np.random.Generator) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """A random box that holds some of the brain, and the same box at half resolution."""
    brain = volume[0, 0] > 0
    for _ in range(DRAWS):
        starts = [2 * int(rng.integers(0, max(0, n - edge) // 2 + 1)) for n in brain.shape]
        box = tuple(slice(s, min(s + edge, n)) for s, n in zip(starts, brain.shape, strict=True))
        if brain[box].float().mean() > 0.2:
            break
    every = (slice(None), slice(None))
    return (*every, *box), (*every, *(slice(b.start // 2, b.stop // 2) for b in box))
