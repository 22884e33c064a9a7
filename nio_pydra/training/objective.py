"""The loss of one pair at one level, on the whole image or on a crop of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nio_pydra.losses import diffusion
from nio_pydra.networks import Network
from nio_pydra.networks.lapirn import image_pyramid
from nio_pydra.training.pairs import ImagePair
from nio_pydra.training.recipes import RECIPES
from nio_pydra.training.settings import Stage

__all__ = ["objective"]

#: The authors' code multiplies a unit field by the image's size before it takes differences, which is twice the
#: displacement in voxels. Their lambda weighs squares of that, four times those of voxels.
AUTHORS_DIFFUSION_SCALE = 4.0
STRUCTURES_AT_A_TIME = 12  # drawn anew for every pair: all of them would cost more than the network


def objective(
    network: Network,
    pair: ImagePair,
    stage: Stage,
    smoothness: float,
    rng: np.random.Generator,
    *,
    label_weight: float = 0.0,
) -> Tensor:
    """The loss of one pair: local cross-correlation, diffusion, and the overlap of labels.

    Parameters
    ----------
    network : Network
        Of LapIRN, `stage.level` levels are run.
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
    recipe = RECIPES[network.architecture]
    found = recipe.predict(network, pair, stage, smoothness, rng)
    similarity = recipe.similarity(found.target, found.carry(found.moving), stage.level)
    loss = (1 - smoothness) * similarity + smoothness * AUTHORS_DIFFUSION_SCALE * diffusion(found.strain_field)
    if label_weight and pair.moving_labels is not None and pair.fixed_labels is not None:
        # Crops are taken in the pair's own voxels, so the box serves its labels as they are.
        shown = _draw_structures(pair.moving_labels, pair.fixed_labels[found.box], rng)
        if shown.numel():
            masks = ((labels == shown).to(found.moving.dtype) for labels in (pair.moving_labels, pair.fixed_labels))
            moving_share, fixed_share = (image_pyramid(mask, max(2, stage.level))[stage.level - 1] for mask in masks)
            loss = loss + label_weight * (1 - _soft_dice(fixed_share[found.box], found.carry(moving_share)))
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
