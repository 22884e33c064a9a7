"""Show where the time of a step goes at each level: a table, and `docs/images/stages.png`.

    python benchmarks/stages.py [--size 160 192 144] [--steps 5] [--threads 2]

The step of `optimize.nio` is taken apart into its pieces, each run by the code that it calls and handed on as a
detached tensor, so that every piece, forward and back, can be timed alone. The real loop is timed beside it: when the
pieces no longer add up to its step, this file has to follow a change of the loop.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from steps import network_and_pair, step_seconds
from torch import Tensor

from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.devices import choose_precision
from nio_pydra.losses import FixedStatistics, diffusion, lncc
from nio_pydra.networks.lapirn import LEVELS, LapIRN, image_pyramid
from nio_pydra.optimize.nio import NIOSettings
from nio_pydra.optimize.problem import Problem
from nio_pydra.optimize.resources import keep_freed_memory, limit_threads
from nio_pydra.spatial.unit_grid import upsample, warp

STAGES = (
    "network forward",
    "network backward",
    "upsampling",
    "warp",
    "similarity",
    "regulariser",
    "optimiser",
)
#: Okabe and Ito's palette, told apart by the colour-blind too.
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#CC79A7", "#999999")
SMALLEST_LABELLED = 0.06  # share of a step below which a piece is too narrow for its seconds


def main() -> int:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=(160, 192, 144), metavar=("D", "H", "W"))
    parser.add_argument("--steps", type=int, default=5, help="timed steps per level; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", type=Path, help="network weights (default: the package's)")
    parser.add_argument("--precision", choices=["auto", "float32"], default="auto")
    picture = Path(__file__).parents[1] / "docs/images/stages.png"
    parser.add_argument("--picture", type=Path, default=picture)
    options = parser.parse_args()
    keep_freed_memory(math.prod(options.size))
    limit_threads(options.threads)
    load = os.getloadavg()[0]
    precision = choose_precision(Runtime(precision=options.precision), torch.device("cpu"))
    network, pair = network_and_pair(tuple(options.size), options.weights)
    network = network.to(memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]  # as the loop does
    pieces, whole = [], []
    for level in range(1, LEVELS + 1):
        pieces.append(profile(network, pair, level, options.steps, precision))
        whole.append(float(np.median(step_seconds(network, pair, level, options.steps, precision)[:, 0])))
        print(f"level {level} measured", flush=True)
    seconds = np.array(pieces)
    about = f"{'x'.join(map(str, options.size))}, {str(precision).removeprefix('torch.')}, {options.threads} threads"
    print(_table(seconds, whole, f"{about}, load before {load:.1f}"))
    _draw(seconds, whole, about, options.picture)
    print(f"written: {options.picture}")
    return 0


def profile(network: LapIRN, pair: Problem, level: int, steps: int, precision: torch.dtype) -> NDArray[np.float64]:
    """Time the pieces of a step.

    Parameters
    ----------
    network : LapIRN
        In training mode, on the CPU; its weights change a little.
    pair : Problem
        On the CPU, without weights of the similarity.
    level : int
        How many levels are optimised together, 1 to 3.
    steps : int
        How many steps to time; one more is run before them and not counted.
    precision : torch.dtype
        Of the convolutions.

    Returns
    -------
    ndarray
        Seconds of every piece of `STAGES`, each the median over the steps.
    """
    settings = NIOSettings()
    weight = settings.objective.weight
    moving, fixed = image_pyramid(pair.moving), image_pyramid(pair.fixed)
    statistics = FixedStatistics.of(pair.fixed, settings.objective.window)
    optimizer = torch.optim.Adam(network.levels[:level].parameters(), lr=settings.learning_rate)
    measured = []
    for _ in range(1 + steps):
        spent = dict.fromkeys(STAGES, 0.0)

        @contextmanager
        def timed(stage: str, spent: dict[str, float] = spent) -> Iterator[None]:
            start = time.perf_counter()
            yield
            spent[stage] += time.perf_counter() - start

        with timed("optimiser"):
            optimizer.zero_grad(set_to_none=True)
        autocast = torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32)
        with timed("network forward"), autocast:
            field = network.on_pyramid(moving, fixed, levels=level, condition=weight)[-1].field
        coarse = _leaf(field)
        with timed("upsampling"):
            upsampled = upsample(coarse, 2 ** (LEVELS - level))
        full = _leaf(upsampled)
        with timed("warp"):
            warped = warp(pair.moving, full)
        compared = _leaf(warped)
        with timed("similarity"):
            ((1 - weight) * lncc(statistics, compared)).backward()
        with timed("warp"):
            warped.backward(compared.grad)
        with timed("regulariser"):
            (weight * diffusion(full)).backward()
        with timed("upsampling"):
            upsampled.backward(full.grad)
        with timed("network backward"):
            field.backward(coarse.grad)
        with timed("optimiser"):
            optimizer.step()
        measured.append([spent[stage] for stage in STAGES])
    return np.median(measured[1:], axis=0)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _table(seconds: NDArray[np.float64], whole: list[float], about: str) -> str:
    lines = [
        f"Seconds of a step at {about}",
        "",
        "| level | " + " | ".join([*STAGES, "sum", "step of the loop"]) + " |",
    ]
    lines.append("|---" * (3 + len(STAGES)) + "|")
    for level, (row, step) in enumerate(zip(seconds, whole, strict=True), start=1):
        lines.append(f"| {level} | " + " | ".join(f"{value:.3f}" for value in [*row, row.sum(), step]) + " |")
    return "\n".join(lines)


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 0.1 else f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _draw(seconds: NDArray[np.float64], whole: list[float], about: str, path: Path) -> None:
    """Draw one bar per level: its length is the whole step, its parts are labelled in seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 3.4), layout="constrained")
    iterations = NIOSettings().iterations
    names = [f"level {level}\n{count} steps in preset paper" for level, count in enumerate(iterations, start=1)]
    places = np.arange(LEVELS)[::-1]
    left = np.zeros(LEVELS)
    shares = seconds / seconds.sum(axis=1, keepdims=True)
    for stage, colour, share, spent in zip(STAGES, COLOURS, shares.T, seconds.T, strict=True):
        bars = axes.barh(places, 100 * share, left=left, color=colour, label=stage, edgecolor="white", height=0.62)
        texts = [_short(s) if part >= SMALLEST_LABELLED else "" for s, part in zip(spent, share, strict=True)]
        dark = colour == COLOURS[0]
        axes.bar_label(bars, texts, label_type="center", fontsize=8, color="white" if dark else "black")
        left += 100 * share
    for place, total, step in zip(places, seconds.sum(axis=1), whole, strict=True):
        axes.text(101, place, f"{total:.2f} s\n({step:.2f} s in the loop)", va="center", fontsize=8)
    axes.set(yticks=places, yticklabels=names, xlim=(0, 100), xticks=range(0, 101, 20), xlabel="% of a step")
    axes.set_title(f"Where the time of a step goes: {about}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(STAGES), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
