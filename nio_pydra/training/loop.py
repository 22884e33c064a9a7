"""Training LapIRN from nothing, coarse to fine.

Each stage trains one level on top of finished ones, with the loss at that level's own resolution. A level starts as a
copy of the one below it: all levels do the same work on images of another size, so little is left to learn. Above the
first, a stage may work on random crops, for which the levels below run once on the whole image without gradients.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nio_pydra.errors import InputError
from nio_pydra.networks import LapIRN, load_network, save_network
from nio_pydra.networks.checkpoints import weights_digest
from nio_pydra.networks.lapirn import LEVELS
from nio_pydra.spatial.files import atomic_path
from nio_pydra.training.objective import objective
from nio_pydra.training.pairs import SyntheticPairs, pair_loader
from nio_pydra.training.settings import TrainingSettings
from nio_pydra.training.validation import Validation

__all__ = ["inherit", "train"]

WARM_UP = 50  # steps over which the learning rate rises


def inherit(network: LapIRN, level: int, head_scale: float) -> None:
    """Start a level (2 or 3) as a copy of the one below, its residual scaled."""
    state = network.levels[level - 2].state_dict()
    own = network.levels[level - 1].state_dict()
    for name, values in state.items():
        if values.shape == own[name].shape:
            own[name].copy_(values)
        else:  # the first convolution of level 1 knows the two images only
            own[name].zero_()
            own[name][:, : values.shape[1]] = values
    own["head.2.weight"].mul_(head_scale)


def train(
    settings: TrainingSettings,
    maps: list[Path],
    out: Path,
    *,
    initial: Path | None = None,
    background: bool = True,
    log: Callable[[str], None] = print,
) -> LapIRN:
    """Run or resume a training.

    Parameters
    ----------
    settings : TrainingSettings
        The same as those of the interrupted run, where there is one.
    maps : list of Path
        Prepared label maps.
    out : Path
        Takes ``settings.json``, ``checkpoint.pt`` (from which a killed run resumes exactly) and
        ``weights.safetensors``, which is usable from the first validation on.
    initial : Path, optional
        Weights to start from instead of random ones; their levels are kept until a stage trains them.
    background : bool
        Make the images in a process of their own.
    log : callable
        Takes one line at a time.

    Raises
    ------
    InputError
        If `out` holds a run with other settings, too few maps are given, or `initial` is another network.
    """
    if len(maps) < settings.held_out + 3:
        raise InputError(
            f"{len(maps)} label maps: expected {settings.held_out + 3}, {settings.held_out} of them held out."
        )
    shown = json.loads(json.dumps({**asdict(settings), "initial": initial and weights_digest(initial)}))
    stored = out / "settings.json"
    if stored.is_file() and json.loads(stored.read_text()) != shown:
        raise InputError(f"{out} holds a run with other settings: give another --out, or the settings in {stored}.")
    with atomic_path(stored) as temporary:
        temporary.write_text(json.dumps(shown, indent=2))

    torch.manual_seed(settings.seed)
    network, trained = LapIRN(settings.network), 0
    if initial is not None:
        network, metadata = load_network(initial)
        trained = int(metadata.get("trained_levels", LEVELS))
        if network.config != settings.network:
            raise InputError(f"{initial} holds a network of another shape than the one to train ({settings.network}).")
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    cut = len(maps) - settings.held_out
    run = _Run(settings, maps[:cut], maps[cut:], out, network, log, background, trained)
    checkpoint = out / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True) if checkpoint.is_file() else None
    first = 0
    if state is not None:
        network.load_state_dict(state["network"])
        first = state["stage"]
        log(f"resuming at stage {first + 1}, step {state['step']}")
    for number in range(first, len(settings.stages)):
        run.stage(number, state if number == first else None)
    return network


@dataclass
class _Run:
    settings: TrainingSettings
    maps: list[Path]
    held_out: list[Path]
    out: Path
    network: LapIRN
    log: Callable[[str], None]
    background: bool
    trained: int  # levels that the initial weights bring along

    def stage(self, number: int, state: dict[str, Any] | None) -> None:
        """Run a stage from its beginning, or from a checkpoint's state."""
        settings, network = self.settings, self.network
        stage = settings.stages[number]
        spacing = 1 if stage.level == LEVELS else 2
        validation = Validation(self.held_out, settings.synthesis, spacing)
        start = 0 if state is None else state["step"]
        trained = max([self.trained, *(s.level for s in settings.stages[:number])])
        if state is None:
            if stage.level == trained + 1 and trained > 0:
                inherit(network, stage.level, settings.head_scale)
            self.log(
                f"stage {number + 1}: level {stage.level}, {stage.steps} steps; unregistered {validation.score(None)}"
            )
            self.log(f"stage {number + 1} before training: {validation.score(network, stage.level)}")
        for i, level in enumerate(network.levels, start=1):
            level.requires_grad_(i == stage.level or (stage.joint and i < stage.level))
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=stage.learning_rate)
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
        seed = settings.seed * 1000 + number
        pairs = SyntheticPairs(self.maps, settings.synthesis, spacing=spacing, seed=seed, start=start)
        losses: list[float] = []
        begin = time.perf_counter()
        waited = 0.0
        stream = pair_loader(pairs, background=self.background)
        for step in range(start, stage.steps):
            rise = min(1.0, (step + 1) / WARM_UP)
            fall = 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / stage.steps))
            optimizer.param_groups[0]["lr"] = float(stage.learning_rate * rise * fall)
            asked = time.perf_counter()
            pair = next(stream)
            waited += time.perf_counter() - asked
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                loss = objective(network, pair, stage, settings.smoothness, np.random.default_rng([seed, 1, step]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            done = step + 1
            if done % settings.save_every == 0 or done == stage.steps:
                seconds = (time.perf_counter() - begin) / (done - start)
                self.log(
                    f"stage {number + 1} step {done}/{stage.steps} loss {np.mean(losses):.4f} "
                    f"{seconds:.2f} s/step ({waited / (done - start):.2f} waiting)"
                )
                losses.clear()
            if done % settings.validate_every == 0 or done == stage.steps:
                self.log(f"stage {number + 1} step {done} validation: {validation.score(network, stage.level)}")
                self._export(max(trained, stage.level))
            # Last, so that a run killed in between repeats what was not finished.
            if done % settings.save_every == 0 or done == stage.steps:
                self._save(number, done, optimizer)

    def _save(self, number: int, step: int, optimizer: torch.optim.Optimizer) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "stage": number,
            "step": step,
        }
        with atomic_path(self.out / "checkpoint.pt") as temporary:
            torch.save(state, temporary)

    def _export(self, trained: int) -> None:
        whole = LapIRN(self.settings.network)
        whole.load_state_dict(self.network.state_dict())
        for level in range(trained + 1, LEVELS + 1):
            inherit(whole, level, self.settings.head_scale)
        metadata = {**self.settings.metadata(), "trained_levels": trained}
        save_network(whole, self.out / "weights.safetensors", metadata)
