"""An endless, repeatable stream of training pairs, and fixed ones for validation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from nio_pydra.training.maps import TISSUES
from nio_pydra.training.synthesis import Anatomy, SynthesisSettings, draw_contrast, draw_pose, synthesise

__all__ = ["SyntheticPairs", "pair_loader", "validation_pairs"]

GROUP = 3  # images of one contrast and pose
ORDERED = tuple(permutations(range(GROUP), 2))  # all are paired: making images costs as much as learning from them

Pair = tuple[Tensor, Tensor]


class SyntheticPairs(IterableDataset):
    """Pairs (moving, fixed), each image ``(1, 1, D, H, W)``; pair `k` depends on the seed and `k` alone.

    Parameters
    ----------
    maps : list of Path
        Prepared label maps (:func:`nio_pydra.training.maps.prepare_label_maps`).
    settings : SynthesisSettings
        How the images differ.
    spacing : {1, 2}
        Voxel size in mm.
    seed : int
        Of the whole stream.
    start : int
        The first pair to give: resuming costs nothing.
    """

    def __init__(
        self, maps: list[Path], settings: SynthesisSettings, *, spacing: int, seed: int, start: int = 0
    ) -> None:
        if len(maps) < GROUP:
            raise ValueError(f"{len(maps)} label maps: training needs at least {GROUP}")
        self.maps, self.settings, self.spacing, self.seed, self.start = maps, settings, spacing, seed, start

    def __iter__(self) -> Iterator[Pair]:
        anatomies = [load_anatomy(path) for path in self.maps]
        for k in count(self.start):
            group, number = divmod(k, len(ORDERED))
            if number == 0 or k == self.start:
                images = self._group(anatomies, np.random.default_rng([self.seed, group]))
            moving, fixed = ORDERED[number]
            yield images[moving], images[fixed]

    def _group(self, anatomies: list[Anatomy], rng: np.random.Generator) -> list[Tensor]:
        settings = self.settings
        contrast, pose = draw_contrast(rng, settings), draw_pose(rng, settings)
        return [
            synthesise(
                anatomies[k],
                contrast,
                draw_pose(rng, settings, settings.residual).after(pose),
                rng,
                settings,
                spacing=self.spacing,
            )[0]
            for k in rng.choice(len(anatomies), GROUP, replace=False)
        ]


def pair_loader(pairs: SyntheticPairs, *, background: bool) -> Iterator[Pair]:
    """Iterate over pairs, made ahead by one background process where `background` is set."""
    if not background:
        return iter(pairs)
    return iter(DataLoader(pairs, batch_size=None, num_workers=1, prefetch_factor=6, worker_init_fn=_one_thread))


def validation_pairs(
    maps: list[Path], settings: SynthesisSettings, *, spacing: int, seed: int = 0
) -> list[tuple[Pair, Pair]]:
    """All ordered pairs of some maps, as T1-weighted images of the real anatomies (no random warp).

    Returns
    -------
    list
        ``((moving, fixed), (moving labels, fixed labels))`` each.
    """
    contrast = np.array([tissue.t1 for tissue in TISSUES], np.float32)
    made = []
    for number, path in enumerate(maps):
        rng = np.random.default_rng([seed, number])
        pose = draw_pose(rng, settings, settings.residual / 2)
        made.append(synthesise(load_anatomy(path), contrast, pose, rng, settings, spacing=spacing, plain=True))
    return [((a[0], b[0]), (a[1], b[1])) for a, b in permutations(made, 2)]


def load_anatomy(path: Path) -> Anatomy:
    """Read a prepared label map."""
    with np.load(path) as stored:
        return Anatomy(stored["labels"])


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
