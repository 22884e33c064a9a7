"""Endless, repeatable streams of training pairs, and fixed pairs for validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice, permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nio_pydra.errors import InputError
from nio_pydra.networks.lapirn import image_pyramid
from nio_pydra.system.processes import forkserver
from nio_pydra.training.maps import STRUCTURES, TISSUES
from nio_pydra.training.synthesis import (
    Anatomy,
    SynthesisSettings,
    draw_contrast,
    draw_pose,
    posed_positions,
    synthesise,
)

__all__ = [
    "GroupStream",
    "ImagePair",
    "ImageSource",
    "RealImages",
    "SyntheticImages",
    "group_loader",
    "pair_stream",
    "require_enough",
]

#: Images of one group and their labels, ``(1, 1, D, H, W)`` each.
Group = list[tuple[Tensor, Tensor | None]]

GROUP = 3  # images that share contrast and pose
ORDERED = tuple(permutations(range(GROUP), 2))  # all are paired: making images costs as much as learning from them
KEPT = 32  # files that stay in memory


@dataclass(frozen=True)
class ImagePair:
    """Two brains to align.

    Attributes
    ----------
    moving, fixed : Tensor
        ``(1, 1, D, H, W)`` float32 in [0, 1].
    moving_labels, fixed_labels : Tensor or None
        Of the same shape, float32; None where the images have no labels.
    """

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor | None = None
    fixed_labels: Tensor | None = None


class ImageSource(ABC):
    """Where images come from.

    Parameters
    ----------
    files : list of Path
        Prepared once, on one grid (:mod:`nio_pydra.training.maps`, :mod:`nio_pydra.training.scans`).
    settings : SynthesisSettings
        How images differ.
    held_out : int
        How many files, the last ones, are kept for validation.

    Raises
    ------
    InputError
        If too few files are left to train on.
    """

    def __init__(self, files: list[Path], settings: SynthesisSettings, held_out: int = 0) -> None:
        require_enough(len(files), held_out)
        cut = len(files) - held_out
        self.files, self.held_out, self.settings = files[:cut], files[cut:], settings

    @abstractmethod
    def group(self, rng: np.random.Generator, spacing: int) -> Group:
        """Draw `GROUP` images of different brains and their labels, ``(1, 1, D, H, W)`` in voxels of 1 or 2 mm."""

    @abstractmethod
    def as_it_is(self, number: int, spacing: int) -> tuple[Tensor, Tensor | None]:
        """Image and labels of a held-out brain, its anatomy unchanged."""

    def validation(self, spacing: int) -> list[ImagePair]:
        """Return pairs of the held-out brains: all ordered ones, or in voxels of 1 mm each with the next one."""
        made = [self.as_it_is(number, spacing) for number in range(len(self.held_out))]
        if spacing == 1:  # eight times the voxels: one pair for each brain must do
            chosen = zip(made, made[1:] + made[:1], strict=True) if len(made) > 1 else []
        else:
            chosen = permutations(made, 2)
        return [ImagePair(a[0], b[0], a[1], b[1]) for a, b in chosen]

    def _choose(self, rng: np.random.Generator) -> list[Path]:
        return [self.files[k] for k in rng.choice(len(self.files), GROUP, replace=False)]


def require_enough(brains: int, held_out: int) -> None:
    """Refuse too few brains.

    Raises
    ------
    InputError
        If fewer than `GROUP` are left to train on.
    """
    if brains < held_out + GROUP:
        raise InputError(
            f"{brains} brains to train on: expected at least {held_out + GROUP}, as {held_out} of them are held out "
            "(--held-out)."
        )


class SyntheticImages(ImageSource):
    """Images made of label maps (:func:`nio_pydra.training.maps.prepare_label_maps`)."""

    def group(self, rng: np.random.Generator, spacing: int) -> Group:
        """See :class:`ImageSource`."""
        settings = self.settings
        contrast, pose = draw_contrast(rng, settings), draw_pose(rng, settings)
        made: Group = []
        for path in self._choose(rng):
            own = draw_pose(rng, settings, settings.residual).after(pose)
            image, labels = synthesise(_anatomy(path), contrast, own, rng, settings, spacing=spacing)
            made.append((image, _compared(labels)))
        return made

    def as_it_is(self, number: int, spacing: int) -> tuple[Tensor, Tensor]:
        """See :class:`ImageSource`; shown as a T1-weighted image, with the labels that brains are compared by."""
        rng = np.random.default_rng([0, number])
        pose = draw_pose(rng, self.settings, self.settings.residual / 2)
        contrast = np.array([tissue.t1 for tissue in TISSUES], np.float32)
        anatomy = _anatomy(self.held_out[number])
        image, labels = synthesise(anatomy, contrast, pose, rng, self.settings, spacing=spacing, plain=True)
        return image, _compared(labels)


class RealImages(ImageSource):
    """Real scans (:func:`nio_pydra.training.scans.prepare_scans`), turned and flipped at random."""

    def group(self, rng: np.random.Generator, spacing: int) -> Group:
        """See :class:`ImageSource`."""
        settings = self.settings
        flip, pose = rng.random() < 0.5, draw_pose(rng, settings)
        made = []
        for path in self._choose(rng):
            image, labels = _scan(path)
            grid = posed_positions(draw_pose(rng, settings, settings.residual).after(pose), image.shape[2:])
            if flip:  # all brains of the group, so that left stays apart from right; they lie along the first axis
                grid = grid.flip(1)
            posed = functional.grid_sample(image, grid, padding_mode="zeros", align_corners=True)
            if labels is not None:
                pooled = grid[:, ::spacing, ::spacing, ::spacing]
                labels = functional.grid_sample(
                    labels, pooled, mode="nearest", padding_mode="zeros", align_corners=True
                )
            made.append((_pooled(posed, spacing), labels))
        return made

    def as_it_is(self, number: int, spacing: int) -> tuple[Tensor, Tensor | None]:
        """See :class:`ImageSource`."""
        image, labels = _scan(self.held_out[number])
        return _pooled(image, spacing), labels if labels is None else labels[:, :, ::spacing, ::spacing, ::spacing]


class GroupStream(IterableDataset):
    """Groups of images to pair; group `g` depends on the seed and `g` alone.

    Parameters
    ----------
    source : ImageSource
        Where images come from.
    spacing : {1, 2}
        Voxel size in mm.
    seed : int
        Of the whole stream.
    start : int
        The first group to give.
    """

    def __init__(self, source: ImageSource, *, spacing: int, seed: int, start: int = 0) -> None:
        self.source, self.spacing, self.seed, self.start = source, spacing, seed, start

    def __iter__(self) -> Iterator[Group]:
        worker = get_worker_info()  # several take turns, and so does the loader that asks them
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for group in count(self.start + first, step):
            yield self.source.group(np.random.default_rng([self.seed, group]), self.spacing)


def group_loader(groups: GroupStream, workers: int) -> Iterator[Group]:
    """Iterate over groups, made ahead by so many processes, or by this one where there are none.

    The processes import the main script anew: a script that trains needs an ``if __name__ == "__main__":``.
    """
    if not workers:
        return iter(groups)
    loader = DataLoader(
        groups,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2,
        worker_init_fn=_one_thread,
        multiprocessing_context=forkserver(),
    )
    return iter(loader)


def pair_stream(
    source: ImageSource,
    *,
    spacing: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[ImagePair]:
    """Endless pairs to train on; pair `k` depends on the seed and `k` alone.

    Parameters
    ----------
    source, spacing, seed
        See :class:`GroupStream`.
    start : int
        The first pair to give: resuming costs nothing.
    workers : int
        Processes that make images ahead; 0: they are made here, when they are asked for.
    device : torch.device or str
        Where the pairs are wanted; each image goes there once.
    """
    group, number = divmod(start, len(ORDERED))
    for brains in group_loader(GroupStream(source, spacing=spacing, seed=seed, start=group), workers):
        there = [(image.to(device), labels if labels is None else labels.to(device)) for image, labels in brains]
        for i, k in islice(ORDERED, number, None):
            (moving, moving_labels), (fixed, fixed_labels) = there[i], there[k]
            yield ImagePair(moving, fixed, moving_labels, fixed_labels)
        number = 0


def _pooled(image: Tensor, spacing: int) -> Tensor:
    return image_pyramid(image, spacing)[0]


def _compared(labels: Tensor) -> Tensor:
    """Only those labels that brains are compared by, zero elsewhere."""
    return torch.where(torch.isin(labels, torch.tensor(STRUCTURES, dtype=labels.dtype)), labels, 0)


@lru_cache(KEPT)
def _anatomy(path: Path) -> Anatomy:
    """Read a prepared label map."""
    with np.load(path) as stored:
        return Anatomy(stored["labels"])


@lru_cache(KEPT)
def _scan(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read a prepared scan and its labels, where it has some: ``(1, 1, D, H, W)`` float32."""
    with np.load(path) as stored:
        image, labels = (
            torch.from_numpy(stored[name].astype(np.float32))[None, None] if name in stored else None
            for name in ("image", "labels")
        )
    if image is None:
        raise RuntimeError(f"{path} holds no image: was it made by prepare_scans?")
    return image, labels


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
