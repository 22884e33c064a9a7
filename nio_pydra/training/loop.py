"""The training loop: stages one after the other, each with validation, checkpoints and curves.

What a stage trains and how a network's predictions are compared is the architecture's business:
:mod:`nio_pydra.training.recipes`.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
from nio_pydra.training.settings import Stage, TrainingSettings, read_settings
from nio_pydra.training.validation import Score, Validation

__all__ = ["Loop", "is_better", "train"]

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
    machine = _Machine(device, precision, workers, log)
    _Training(settings, source, network, out, machine, trained).run(device)
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


class Loop(ABC):
    """Stages one after the other, each with validation, checkpoints and curves, and resumed where it was killed.

    What a stage trains, and what its loss and its score are, is said by subclasses.

    Parameters
    ----------
    network : Network
        On its device. It is changed.
    stages : sequence of Stage
        In order.
    out : Path
        Takes ``checkpoint.pt``, ``weights.safetensors`` and the curves.
    log : callable
        Takes one line at a time.
    validate_every, save_every : int
        Steps.
    patience : int, optional
        Validations in a row without a better score that end a stage. Default: none do.
    minutes : float, optional
        Time after which no step is taken, those of killed runs included. Default: there is no limit.
    """

    def __init__(
        self,
        network: Network,
        stages: Sequence[Stage],
        out: Path,
        log: Callable[[str], None],
        *,
        validate_every: int,
        save_every: int,
        patience: int | None = None,
        minutes: float | None = None,
    ) -> None:
        self.network, self.stages, self.out, self.log = network, stages, out, log
        self.validate_every, self.save_every = validate_every, save_every
        self.patience, self.minutes = patience, minutes
        self.steps = [0] * len(stages)  # taken in each stage
        self.waited = 0.0  # seconds of this stage, for images
        self._begun, self._earlier = time.monotonic(), 0.0

    advice = "start again with a lower learning rate"  # after it diverged

    @abstractmethod
    def begin(self, number: int) -> None:
        """Change weights before a stage's first step."""

    @abstractmethod
    def choose_weights(self, stage: Stage) -> None:
        """Let only those weights learn that the stage trains."""

    @abstractmethod
    def rate(self, stage: Stage, step: int) -> float:
        """Return the learning rate of a step, 0 being the first."""

    @abstractmethod
    def losses(self, number: int, start: int) -> Iterator[Tensor]:
        """Return the losses of a stage's steps from `start` on."""

    @abstractmethod
    def score(self, number: int, *, registered: bool = True) -> Score | None:
        """Measure the network, or the images as they lie. None: nothing is held out."""

    @abstractmethod
    def export(self, number: int) -> None:
        """Write the network to ``weights.safetensors``."""

    @property
    def seconds(self) -> float:
        """Time that the stages took so far, that of killed runs included."""
        return self._earlier + time.monotonic() - self._begun

    def run(self, device: torch.device) -> None:
        """Run all stages, or those that are left; leave the network at its best."""
        checkpoint = self.out / "checkpoint.pt"
        state = torch.load(checkpoint, map_location=device, weights_only=True) if checkpoint.is_file() else None
        first = 0
        if state is not None:
            self.network.load_state_dict(state["network"])
            first = state["stage"]
            self._earlier = state.get("seconds", 0.0)
            self.steps = state.get("steps", self.steps)
            self.log(f"resuming at stage {first + 1}, step {state['step']}")
        for number in range(first, len(self.stages)):
            if number > first and self._is_late():
                break
            self._stage(number, state if number == first else None)

    def _stage(self, number: int, state: dict[str, Any] | None) -> None:
        """Run a stage from its beginning, or from a checkpoint's state; leave the network at its best."""
        network, stage = self.network, self.stages[number]
        start, best, stale = (0, None, 0) if state is None else (state["step"], state["best"], state.get("stale", 0))
        if state is None:
            self.begin(number)
            about = f"stage {number + 1}: level {stage.level}, {stage.steps} steps"
            self.log(f"{about}; unregistered {self.score(number, registered=False) or 'nothing held out'}")
            before = self.score(number)
            self.log(f"stage {number + 1} before training: {before or '-'}")
            if before is not None:  # a copy of the level below may be better than what a short training makes of it
                best = before.value
                self.export(number)
        self.choose_weights(stage)
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=stage.learning_rate)
        if state is None:
            self._save(number, 0, (best, stale), optimizer)  # before weights of this stage replace the last one's
        else:
            optimizer.load_state_dict(state["optimizer"])
        earlier = sum(s.steps for s in self.stages[:number])
        losses: list[float] = []
        begin = time.perf_counter()
        self.waited = 0.0
        stream = self.losses(number, start)
        with _Curves(self.out / "tensorboard", earlier + start + 1) as curves, _bar(number, stage.steps, start) as bar:
            for step in range(start, stage.steps):
                if self._is_over(stale):
                    break
                optimizer.param_groups[0]["lr"] = self.rate(stage, step)
                loss = next(stream)
                done = step + 1
                losses.append(loss.item())
                self._require_finite(losses[-1], f"loss {losses[-1]} at step {done} of stage {number + 1}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
                self.steps[number] = done
                last = done == stage.steps or self._is_late()
                if done % self.save_every == 0 or last:
                    seconds = (time.perf_counter() - begin) / (done - start)
                    mean = float(np.mean(losses))
                    losses.clear()
                    self.log(
                        f"stage {number + 1} step {done}/{stage.steps} loss {mean:.4f} "
                        f"{seconds:.2f} s/step ({self.waited / (done - start):.2f} waiting)"
                    )
                    curves.add(f"loss/level {stage.level}", mean, earlier + done)
                if done % self.validate_every == 0 or last:
                    score = self.score(number)
                    self.log(f"stage {number + 1} step {done} validation: {score or 'nothing held out'}")
                    if score is not None:
                        curves.add(f"{score.name}/level {stage.level}", score.value, earlier + done)
                        curves.add(f"folds in percent/level {stage.level}", score.fold_percent, earlier + done)
                    stale += 1
                    if score is None or is_better(score.value, best):
                        best, stale = score and score.value, 0
                        self.export(number)
                # Last, so that a run killed in between repeats what was not finished.
                if done % self.save_every == 0 or last:
                    self._save(number, done, (best, stale), optimizer)
        network.load_state_dict(load_network(self.out / "weights.safetensors")[0].state_dict())

    def _is_late(self) -> bool:
        return self.minutes is not None and self.seconds > 60 * self.minutes

    def _is_over(self, stale: int) -> bool:
        return self._is_late() or (self.patience is not None and stale >= self.patience)

    def _require_finite(self, value: float, found: str) -> None:
        if not math.isfinite(value):
            raise ComputationError(
                f"The training diverged ({found}). {self.out} keeps the state before it; {self.advice}."
            )

    def _save(self, number: int, step: int, found: tuple[float | None, int], optimizer: torch.optim.Optimizer) -> None:
        total = sum(float(values.sum()) for values in self.network.state_dict().values())
        self._require_finite(total, f"weights that are NaN or infinite at step {step} of stage {number + 1}")
        state = {
            "network": self.network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "stage": number,
            "step": step,
            "best": found[0],
            "stale": found[1],
            "seconds": self.seconds,
            "steps": self.steps,
        }
        with atomic_path(self.out / "checkpoint.pt") as temporary:
            torch.save(state, temporary)


class _Training(Loop):
    """Training of any architecture on pairs of a source, by its recipe."""

    advice = "start again with a lower learning rate (--stage) and another --out"

    def __init__(
        self,
        settings: TrainingSettings,
        source: ImageSource,
        network: Network,
        out: Path,
        machine: _Machine,
        trained: int,
    ) -> None:
        super().__init__(
            network,
            settings.stages,
            out,
            machine.log,
            validate_every=settings.validate_every,
            save_every=settings.save_every,
        )
        self.settings, self.source, self.machine = settings, source, machine
        self.recipe = RECIPES[settings.architecture]
        self.initially = trained  # levels that the initial weights bring along
        self._validation: dict[int, Validation] = {}

    def begin(self, number: int) -> None:
        """See :class:`Loop`."""
        trained = max([self.initially, *(s.level for s in self.stages[:number])])
        self.recipe.begin(self.network, self.stages[number], trained, self.settings)

    def choose_weights(self, stage: Stage) -> None:
        """See :class:`Loop`."""
        self.recipe.choose_weights(self.network, stage)

    def rate(self, stage: Stage, step: int) -> float:
        """See :class:`Loop`."""
        rise = min(1.0, (step + 1) / WARM_UP)
        fall = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / stage.steps))
        return float(stage.learning_rate * rise * fall)

    def losses(self, number: int, start: int) -> Iterator[Tensor]:
        """See :class:`Loop`."""
        settings, machine, stage = self.settings, self.machine, self.stages[number]
        seed = settings.seed * 1000 + number
        stream = pair_stream(
            self.source,
            spacing=_spacing(stage),
            seed=seed,
            start=start,
            workers=machine.workers,
            device=machine.device,
        )
        for step in count(start):
            asked = time.perf_counter()
            pair = next(stream)
            self.waited += time.perf_counter() - asked
            chance = np.random.default_rng([seed, 1, step])
            smoothness = chance.random() if settings.network.conditional else settings.smoothness
            with autocast(machine.device, machine.precision):
                loss = objective(self.network, pair, stage, smoothness, chance, label_weight=settings.label_weight)
            yield loss

    def score(self, number: int, *, registered: bool = True) -> Score | None:
        """See :class:`Loop`."""
        stage = self.stages[number]
        spacing = _spacing(stage)
        if spacing not in self._validation:
            self._validation = {
                spacing: Validation(self.source, spacing, self.settings.smoothness, self.machine.precision)
            }
        validation = self._validation[spacing]
        return validation.score(self.network, stage.level) if registered else validation.score(None)

    def export(self, number: int) -> None:
        """See :class:`Loop`."""
        trained = max([self.initially, *(s.level for s in self.stages[: number + 1])])
        whole, added = self.recipe.completed(self.network, trained, self.settings)
        save_network(whole, self.out / "weights.safetensors", self.settings.metadata() | added)


def _spacing(stage: Stage) -> int:
    return 1 if stage.level == LEVELS else 2


@dataclass(frozen=True)
class _Machine:
    """Where and how a training runs: nothing that decides its result by more than rounding."""

    device: torch.device
    precision: torch.dtype
    workers: int
    log: Callable[[str], None]


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
