"""What `speed.py` and `stages.py` share: a made-up pair, the real loop's step times and a step's arithmetic."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nio_pydra.networks.checkpoints import load_network
from nio_pydra.networks.lapirn import LEVELS, LapIRN
from nio_pydra.optimize.nio import NIOSettings, optimize_network
from nio_pydra.optimize.problem import Problem

__all__ = ["matrix_product_flops", "network_and_pair", "smooth_pair", "step_flop", "step_seconds"]

GRAIN = 12  # voxels between the random values that a made-up image interpolates
BORDER = 6  # empty voxels around a made-up brain: the margin that a network grid gets


def smooth_pair(shape: tuple[int, int, int], seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make two smooth images that resemble each other, in [0, 1], zero within 6 voxels of the border.

    Parameters
    ----------
    shape : tuple of int
        (D, H, W).
    seed : int
        Of the random values.

    Returns
    -------
    tuple of ndarray
        Fixed and moving, ``(D, H, W)`` float32.
    """
    random = np.random.default_rng(seed)
    coarse = random.uniform(0.2, 1, [n // GRAIN + 2 for n in shape]).astype(np.float32)

    def image(values: NDArray[np.float32]) -> NDArray[np.float32]:
        fine = zoom(values, [n / m for n, m in zip(shape, values.shape, strict=True)], order=1)
        inside = np.zeros(shape, bool)
        inside[BORDER:-BORDER, BORDER:-BORDER, BORDER:-BORDER] = True
        return np.where(inside, fine, np.float32(0))

    other = 0.8 * coarse + 0.2 * random.uniform(0.2, 1, coarse.shape)
    return image(coarse), image(other.astype(np.float32))


def network_and_pair(shape: tuple[int, int, int], weights: Path | None) -> tuple[LapIRN, Problem]:
    """Load the network and put a made-up pair into tensors ``(1, 1, D, H, W)`` on the CPU."""
    network, _ = load_network(weights)
    fixed, moving = (torch.from_numpy(image)[None, None] for image in smooth_pair(shape))
    return network, Problem(fixed, moving)


def step_seconds(network: LapIRN, pair: Problem, level: int, steps: int, precision: torch.dtype) -> NDArray[np.float64]:
    """Time steps of the real loop, from one optimiser step to the next.

    Parameters
    ----------
    network : LapIRN
        Left unchanged.
    pair : Problem
        On the CPU.
    level : int
        How many levels are optimised together, 1 to 3.
    steps : int
        How many steps to time; one more is run before them and not counted.
    precision : torch.dtype
        Of the convolutions.

    Returns
    -------
    ndarray
        ``(steps, 2)``: wall and processor seconds.
    """
    iterations = [0] * LEVELS
    iterations[level - 1] = 1 + steps
    marks: list[tuple[float, float]] = []

    def mark(*_: Any) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    handle = register_optimizer_step_post_hook(mark)
    try:
        settings = NIOSettings(iterations=tuple(iterations))  # type: ignore[arg-type]
        optimize_network(network, pair, settings, precision=precision, progress=False)
    finally:
        handle.remove()
    if len(marks) != 1 + steps:
        raise RuntimeError(f"{len(marks)} steps of an optimiser were seen, expected {1 + steps}: was the loop changed?")
    return np.diff(np.array(marks), axis=0)


def step_flop(network: LapIRN, shape: tuple[int, int, int], level: int = LEVELS) -> int:
    """Floating-point operations that the convolutions of one step need, counted from the shapes of their kernels.

    A multiply-add counts twice. Every convolution runs forward, for the gradient of its weights and for that of its
    input; only the first one of all needs no gradient of its input, the images. Whatever is computed again in order
    to save memory does not count, nor does what `networks.convolutions.after_upsampling` saves.

    Parameters
    ----------
    network : LapIRN
        Gives the layers.
    shape : tuple of int
        (D, H, W) at full resolution.
    level : int
        How many levels are optimised together.
    """
    total = 0
    for index, stage in enumerate(network.levels[:level]):
        voxels = int(np.prod([n // 2 ** (LEVELS - 1 - index) for n in shape]))
        for name, layer in stage.named_modules():
            if not isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
                continue
            products = layer.weight.numel() * voxels
            if name.split(".")[0] in ("down", "blocks", "up"):
                products //= 8  # half the resolution; a transposed convolution multiplies per input voxel
            if name == "up" and index == level - 1:
                continue  # nothing above to hand its result to
            if name == "head.0":  # 64 products per voxel of half the resolution stand for 27 at the full one
                products += len(layer.weight) * voxels * (stage.up.in_channels * 8 - stage.up.out_channels * 27)
            passes = 2 if index == 0 and name == "encoder.0" else 3
            total += 2 * passes * products
    return total


def matrix_product_flops(size: int, repeats: int) -> tuple[float, float]:
    """Measure what a bfloat16 matrix product of torch reaches.

    Returns
    -------
    tuple of float
        FLOP per wall second and per processor second, each the best of `repeats` products.
    """
    a, b = (torch.randn(size, size).to(torch.bfloat16) for _ in range(2))
    out: Tensor = torch.mm(a, b)
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        torch.mm(a, b, out=out)
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    flop = 2 * size**3
    return flop / min(walls), flop / min(processors)
