"""The training loop: stages one after the other, each with validation, checkpoints and curves.

What a stage trains and how a network's predictions are compared is the architecture's business:
:mod:`nio_pydra.training.recipes`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.devices import choose_precision
from nio_pydra.errors import ComputationError, InputError
from nio_pydra.networks import Network, load_network, save_network
from nio_pydra.networks.checkpoints import weights_digest
from nio_pydra.networks.interface import architecture_class
from nio_pydra.networks.lapirn import LEVELS
from nio_pydra.optimize.resources import autocast
from nio_pydra.system.cores import core_count
from nio_pydra.system.files import atomic_path, write_text
from nio_pydra.training.objective import objective
from nio_pydra.training.pairs import ImageSource, pair_stream
from nio_pydra.training.recipes import RECIPES
from nio_pydra.training.settings import TrainingSettings, read_settings
from nio_pydra.training.validation import Validation

__all__ = ["is_better", "train"]

WARM_UP = 50  # steps over which the learning rate rises


def is_better(value: float, best: float | None) -> bool:
    """Whether a score beats the best so far. One that is not finite beats nothing, and any other beats NaN."""
    return math.isfinite(value) and (best is None or not value <= best)


def train(
    settings: TrainingSettings,
    source: ImageSource,
    out: Path,
    *,
    initial: Path | None = None,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    log: Callable[[str], None] = print,
) -> Network:
    """Run or resume a training.

    Parameters
    ----------
    settings : TrainingSettings
        The same as those of the interrupted run, where there is one.
    source : ImageSource
        Images to train on and to validate with.
    out : Path
        Takes ``settings.json``, ``origin.json`` (which brains and weights it began with), ``checkpoint.pt`` (from
        which a killed run resumes, exactly so on a CPU with as many threads),
        ``weights.safetensors`` (the best so far, usable from the first validation on) and, where the tensorboard
        package is installed, the curves in ``tensorboard``.
    initial : Path, optional
        Weights to start from instead of random ones; their levels are kept until a stage trains them.
    device : torch.device or str
        Where the network learns; images are always made on the CPU.
    workers : int, optional
        Processes that make the images ahead; 0: they are made in this one. Default: one, and beside a GPU all cores
        but two.
    log : callable
        Takes one line at a time.

    Returns
    -------
    Network
        The best one of the last stage.

    Raises
    ------
    InputError
        If `out` holds a run with other settings or other data, `initial` is another network or one that knows
        lambda in another scale, or a stage trains a level above one that was never trained.
    """
    torch.manual_seed(settings.seed)
    network, trained = architecture_class(settings.architecture)(settings.network), 0
    if initial is not None:
        network, metadata = load_network(initial)
        trained = int(metadata.get("trained_levels", LEVELS))
        if network.config != settings.network:
            raise InputError(f"{initial} holds a network of another shape than the one to train ({settings.network}).")
        if "condition_scale" in metadata:
            raise InputError(
                f"{initial} is told lambda in a scale of its own (condition_scale), as the authors' conditional "
                "networks are, but training teaches lambda itself: start from weights made by `nio train`, or without."
            )
    RECIPES[settings.architecture].check_start(settings, trained)
    _claim(out, settings, source, initial)
    device = torch.device(device)
    precision = choose_precision(Runtime(precision=settings.precision), device)
    network.to(device)
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if workers is None:
        workers = 1 if device.type == "cpu" else max(1, core_count() - 2)
    run = _Run(settings, source, out, network, device, precision, log, workers, trained)
    checkpoint = out / "checkpoint.pt"
    state = torch.load(checkpoint, map_location=device, weights_only=True) if checkpoint.is_file() else None
    first = 0
    if state is not None:
        network.load_state_dict(state["network"])
        first = state["stage"]
        log(f"resuming at stage {first + 1}, step {state['step']}")
    for number in range(first, len(settings.stages)):
        run.stage(number, state if number == first else None)
    return network


def _claim(out: Path, settings: TrainingSettings, source: ImageSource, initial: Path | None) -> None:
    """Store what decides the run, or compare it with what is stored."""
    stored = out / "settings.json"
    if stored.is_file() and read_settings(stored) != settings:
        raise InputError(f"{out} holds a run with other settings: give another --out, or --settings {stored}.")
    settings.write(stored)
    started_from = {
        "initial": initial and weights_digest(initial),
        "brains": [path.name for path in [*source.files, *source.held_out]],
    }
    origin = out / "origin.json"
    if origin.is_file() and json.loads(origin.read_text()) != started_from:
        raise InputError(f"{out} holds a run with other data or initial weights: give another --out.")
    write_text(json.dumps(started_from, indent=1) + "\n", origin)


@dataclass
class _Run:
    settings: TrainingSettings
    source: ImageSource
    out: Path
    network: Network
    device: torch.device
    precision: torch.dtype
    log: Callable[[str], None]
    workers: int
    trained: int  # levels that the initial weights bring along

    def stage(self, number: int, state: dict[str, Any] | None) -> None:
        """Run a stage from its beginning, or from a checkpoint's state; leave the network at its best."""
        settings, network = self.settings, self.network
        recipe = RECIPES[settings.architecture]
        stage = settings.stages[number]
        spacing = 1 if stage.level == LEVELS else 2
        validation = Validation(self.source, spacing, settings.smoothness, self.precision)
        start, best = (0, None) if state is None else (state["step"], state["best"])
        trained = max([self.trained, *(s.level for s in settings.stages[:number])])
        if state is None:
            recipe.begin(network, stage, trained, settings)
            about = f"stage {number + 1}: level {stage.level}, {stage.steps} steps"
            self.log(f"{about}; unregistered {validation.score(None) or 'nothing held out'}")
            before = validation.score(network, stage.level)
            self.log(f"stage {number + 1} before training: {before or '-'}")
            if before is not None:  # a copy of the level below may be better than what a short training makes of it
                best = before.value
                self._export(max(trained, stage.level))
        recipe.choose_weights(network, stage)
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=stage.learning_rate)
        if state is None:
            self._save(number, 0, best, optimizer)  # before weights of this stage take the place of the last one's
        else:
            optimizer.load_state_dict(state["optimizer"])
        seed = settings.seed * 1000 + number
        earlier = sum(s.steps for s in settings.stages[:number])
        losses: list[float] = []
        begin = time.perf_counter()
        waited = 0.0
        stream = pair_stream(
            self.source, spacing=spacing, seed=seed, start=start, workers=self.workers, device=self.device
        )
        with _Curves(self.out / "tensorboard", earlier + start + 1) as curves, _bar(number, stage.steps, start) as bar:
            for step in range(start, stage.steps):
                rise = min(1.0, (step + 1) / WARM_UP)
                fall = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / stage.steps))
                optimizer.param_groups[0]["lr"] = float(stage.learning_rate * rise * fall)
                asked = time.perf_counter()
                pair = next(stream)
                waited += time.perf_counter() - asked
                chance = np.random.default_rng([seed, 1, step])
                smoothness = chance.random() if settings.network.conditional else settings.smoothness
                with autocast(self.device, self.precision):
                    loss = objective(network, pair, stage, smoothness, chance, label_weight=settings.label_weight)
                done = step + 1
                losses.append(loss.item())
                self._require_finite(losses[-1], f"loss {losses[-1]} at step {done} of stage {number + 1}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
                last = done == stage.steps
                if done % settings.save_every == 0 or last:
                    seconds = (time.perf_counter() - begin) / (done - start)
                    mean = float(np.mean(losses))
                    losses.clear()
                    self.log(
                        f"stage {number + 1} step {done}/{stage.steps} loss {mean:.4f} "
                        f"{seconds:.2f} s/step ({waited / (done - start):.2f} waiting)"
                    )
                    curves.add(f"loss/level {stage.level}", mean, earlier + done)
                if done % settings.validate_every == 0 or last:
                    score = validation.score(network, stage.level)
                    self.log(f"stage {number + 1} step {done} validation: {score or 'nothing held out'}")
                    if score is not None:
                        curves.add(f"{score.name}/level {stage.level}", score.value, earlier + done)
                        curves.add(f"folds in percent/level {stage.level}", score.fold_percent, earlier + done)
                    if score is None or is_better(score.value, best):
                        best = score and score.value
                        self._export(max(trained, stage.level))
                # Last, so that a run killed in between repeats what was not finished.
                if done % settings.save_every == 0 or last:
                    self._save(number, done, best, optimizer)
        network.load_state_dict(load_network(self.out / "weights.safetensors")[0].state_dict())

    def _require_finite(self, value: float, found: str) -> None:
        if not math.isfinite(value):
            raise ComputationError(
                f"The training diverged ({found}). {self.out} keeps the state before it; start again with a lower "
                "learning rate (--stage) and another --out."
            )

    def _save(self, number: int, step: int, best: float | None, optimizer: torch.optim.Optimizer) -> None:
        total = sum(float(values.sum()) for values in self.network.state_dict().values())
        self._require_finite(total, f"weights that are NaN or infinite at step {step} of stage {number + 1}")
        state = {
            "network": self.network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "stage": number,
            "step": step,
            "best": best,
        }
        with atomic_path(self.out / "checkpoint.pt") as temporary:
            torch.save(state, temporary)

    def _export(self, trained: int) -> None:
        whole, added = RECIPES[self.settings.architecture].completed(self.network, trained, self.settings)
        save_network(whole, self.out / "weights.safetensors", self.settings.metadata() | added)


class _Curves:
    """Curves for TensorBoard; does nothing where that is not installed.

    What a killed run wrote from step `first` on is forgotten: it is written again.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self.writer = None
        with suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=first)

    def add(self, name: str, value: float, step: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(name, value, step)

    def __enter__(self) -> _Curves:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()


def _bar(number: int, steps: int, start: int) -> Any:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    return tqdm(total=steps, initial=start, desc=f"stage {number + 1}", unit="step", dynamic_ncols=True, disable=None)
