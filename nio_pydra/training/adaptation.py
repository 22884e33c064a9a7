"""Adaptation of a network to an atlas and the scans of one dataset, so that each scan needs no steps of its own.

It is Neural Instance Optimization (:mod:`nio_pydra.optimize.nio`) of many pairs at once: the same loss, coarse to fine,
each step on another scan. Scans that are held out tell when it no longer helps.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nio_pydra import __version__
from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.engines.devices import choose_device, choose_precision
from nio_pydra.engines.network_space import NetworkSpace, grid_around
from nio_pydra.engines.registration import load_pair
from nio_pydra.errors import InputError
from nio_pydra.networks import load_network, save_network
from nio_pydra.networks.checkpoints import condition_for, default_weights, read_metadata, weights_digest
from nio_pydra.networks.lapirn import LEVELS, LapIRN, image_pyramid
from nio_pydra.optimize.problem import Objective, Problem
from nio_pydra.optimize.resources import autocast, keep_freed_memory, limit_threads, place, return_freed_memory
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.spatial.unit_grid import upsample
from nio_pydra.system.files import contents_digest, one_at_a_time
from nio_pydra.training.loop import Loop
from nio_pydra.training.settings import Stage
from nio_pydra.training.validation import Score, folded
from nio_pydra.version import source_digest

__all__ = ["AdaptationSettings", "Aligned", "adapt", "held_out_of"]

SCORES = ("score_before", "score", "fold_percent")  # in the metadata
EVERY = 12  # steps between two validations, and two checkpoints


@dataclass(frozen=True)
class AdaptationSettings:
    """Schedule and objective.

    Attributes
    ----------
    iterations : tuple of int
        Largest number of steps at levels 1, 2 and 3, all scans together. Level 3 costs most and adds least.
    learning_rate : float
        Learning rate of Adam.
    objective : Objective
        Similarity window and regularisation weight.
    patience : int
        Validations in a row without a better score that end a level.
    minutes : float or None
        Time after which no step is taken. None: there is no limit.
    """

    iterations: tuple[int, int, int] = (60, 72, 0)
    learning_rate: float = 1e-4
    objective: Objective = field(default_factory=Objective)
    patience: int = 4
    minutes: float | None = None

    def __post_init__(self) -> None:
        if len(self.iterations) != LEVELS or min(self.iterations) < 0 or not any(self.iterations):
            raise ValueError(
                f"iterations is {self.iterations}: expected {LEVELS} numbers, none negative and not all zero"
            )
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}: expected a positive number")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Levels that take steps. Those below learn along."""
        return tuple(
            Stage(level, steps, self.learning_rate, joint=True)
            for level, steps in enumerate(self.iterations, start=1)
            if steps
        )


@dataclass(frozen=True)
class Aligned:
    """A scan that was aligned to the atlas.

    Attributes
    ----------
    scan : ScanFiles
        Image and masks on its grid.
    affine : Path
        ITK affine from points of the atlas to points of the scan.
    """

    scan: ScanFiles
    affine: Path


def held_out_of(scans: int) -> int:
    """Return how many of so many scans are held out: a fifth, but at least one where there are two or more."""
    return 0 if scans < 2 else max(1, scans // 5)


def adapt(
    atlas: ScanFiles,
    scans: Sequence[Aligned],
    cache: Path,
    settings: AdaptationSettings,
    *,
    weights: Path | None = None,
    runtime: Runtime | None = None,
    profile: Profile = BRAIN,
    log: Callable[[str], None] = print,
) -> Path:
    """Adapt a network to an atlas and scans. A killed run resumes: the same call gives the same weights.

    Parameters
    ----------
    atlas : ScanFiles
        Atlas and its mask.
    scans : sequence of Aligned
        Scans of different participants. The last ones (:func:`held_out_of`) are held out.
    cache : Path
        Takes a folder for each adaptation, named by all that decides it.
    settings : AdaptationSettings
        Schedule and objective.
    weights : Path, optional
        Weights of LapIRN to start from. Default: those of the package.
    runtime : Runtime, optional
        Device, threads, precision and seed. The seed decides the order of the scans.
    profile : Profile
        Profile of the images.
    log : callable
        Takes one line at a time.

    Returns
    -------
    Path
        Weights in the cache. Their metadata say under ``adapted`` from which weights and to what.

    Raises
    ------
    InputError
        If there are no scans, an image cannot be used, or the weights are not LapIRN's.
    ComputationError
        If the adaptation diverges.
    """
    runtime = runtime or Runtime()
    if not scans:
        raise InputError("There is no scan to adapt the network to.")
    weights = default_weights() if weights is None else Path(weights)
    network, metadata = load_network(weights)
    if not isinstance(network, LapIRN):
        raise InputError(f"{weights} holds weights of {network.architecture}: only LapIRN can be adapted.")
    origin: dict[str, Any] = {
        "from": {"name": weights.name, "sha256": weights_digest(weights)},
        "atlas": {"name": atlas.image.name, "digest": contents_digest(atlas.image)},
        "scans": len(scans),
        "held_out": held_out_of(len(scans)),
        "seed": runtime.seed,
    }
    files = [contents_digest(atlas.mask)]
    files += [contents_digest(own.scan.image, own.scan.mask, own.scan.lesion_mask, own.affine) for own in scans]
    decides = json.dumps([origin, files, asdict(settings), runtime.precision, source_digest()])
    out = cache / hashlib.sha256(decides.encode()).hexdigest()[:16]
    out.mkdir(parents=True, exist_ok=True)
    # Of two runs that adapt to the same, the later one finds it done.
    with one_at_a_time(out / "lock", lambda: log("another run adapts to the same scans: waiting for it")):
        limit_threads(runtime.thread_count)
        device = choose_device(runtime)
        network = place(network, device)
        problems = _problems(atlas, scans, network, metadata, profile, device)
        _Adaptation(network, problems, out, settings, metadata, origin, runtime, log).run(device)
        del problems
        gc.collect()
        return_freed_memory()  # registrations in other processes need it
    return out / "weights.safetensors"


def _problems(
    atlas: ScanFiles,
    scans: Sequence[Aligned],
    network: LapIRN,
    metadata: dict[str, Any],
    profile: Profile,
    device: torch.device,
) -> list[Problem]:
    """Bring atlas and scans into the network's space."""
    found: list[Problem] = []
    for own in scans:
        pair = load_pair(atlas, own.scan, own.affine, profile)
        fixed = pair.fixed_object
        grid = grid_around(fixed, metadata, network.size_multiple)
        if not found:
            keep_freed_memory(int(np.prod(grid.shape)))
        space = NetworkSpace.of(pair, grid, fixed, metadata["intensity_scaling"], device)
        problem = space.problem
        found.append(found[0].with_moving(problem.moving, problem.moving_weights) if found else problem)
    return found


class _Adaptation(Loop):
    """The loss of NIO over several pairs; see :class:`Loop`."""

    def __init__(
        self,
        network: LapIRN,
        problems: Sequence[Problem],
        out: Path,
        settings: AdaptationSettings,
        metadata: dict[str, Any],
        origin: dict[str, Any],
        runtime: Runtime,
        log: Callable[[str], None],
    ) -> None:
        super().__init__(
            network,
            settings.stages,
            out,
            log,
            validate_every=EVERY,
            save_every=EVERY,
            patience=settings.patience,
            minutes=settings.minutes,
        )
        cut = len(problems) - origin["held_out"]
        self.learned, self.held_out = problems[:cut], problems[cut:]
        self.objective, self.seed = settings.objective, runtime.seed
        self.metadata, self.origin = metadata, origin
        self.device = problems[0].fixed.device
        self.precision = choose_precision(runtime, self.device)
        self.condition = condition_for(metadata, settings.objective.weight)
        self.lapirn, self.fixed = network, image_pyramid(problems[0].fixed)
        self.found: dict[str, float] = {}  # scores before and now, for the metadata
        if (stored := out / "weights.safetensors").is_file():  # of a killed run
            self.found = {key: value for key, value in read_metadata(stored)["adapted"].items() if key in SCORES}

    def begin(self, number: int) -> None:
        """See :class:`Loop`. The weights are a result from the beginning: the network may get no better."""
        if number == 0:
            self.export(number)

    def choose_weights(self, stage: Stage) -> None:
        """See :class:`Loop`."""
        for level, weights in enumerate(self.lapirn.levels, start=1):
            weights.requires_grad_(level <= stage.level)

    def rate(self, stage: Stage, step: int) -> float:
        """See :class:`Loop`. It stays the same, as in NIO."""
        return stage.learning_rate

    def losses(self, number: int, start: int) -> Iterator[Tensor]:
        """See :class:`Loop`. All scans take turns, in an order of their own each time."""
        for step in count(start):
            turn, place_in_turn = divmod(step, len(self.learned))
            order = np.random.default_rng([self.seed, number, turn]).permutation(len(self.learned))
            problem = self.learned[order[place_in_turn]]
            yield problem.loss(self._field(problem, self.stages[number].level), self.objective)

    def _field(self, problem: Problem, levels: int) -> Tensor:
        moving = image_pyramid(problem.moving)
        with autocast(self.device, self.precision):
            outputs = self.lapirn.on_pyramid(moving, self.fixed, levels=levels, condition=self.condition)
        return upsample(outputs[-1].field, 2 ** (LEVELS - levels))

    def score(self, number: int, *, registered: bool = True) -> Score | None:
        """See :class:`Loop`. The loss of the held-out scans by the whole network, with the opposite sign.

        Folds are reported and not part of it: they rise while overlap still does, and the refinement removes them.
        """
        values, folds = [], []
        with torch.no_grad():
            for problem in self.held_out:
                size = problem.fixed.shape[2:]
                unit = self._field(problem, LEVELS) if registered else torch.zeros(1, 3, *size, device=self.device)
                unit = unit.float().contiguous()
                values.append(-float(problem.loss(unit, self.objective)))
                folds.append(folded(unit, problem.fixed))
        if not values:
            return None
        value, share = float(np.mean(values)), float(np.mean(folds))
        if registered:
            self.found = {"score_before": value, **self.found, "score": value, "fold_percent": 100 * share}
        return Score("similarity less roughness", value, 100 * share)

    def export(self, number: int) -> None:
        """See :class:`Loop`."""
        steps = [0] * LEVELS
        for stage, taken in zip(self.stages, self.steps, strict=True):
            steps[stage.level - 1] = taken
        made = {"steps": steps, "nio_pydra": __version__, "date": time.strftime("%Y-%m-%d")}
        adapted = self.origin | made | self.found
        save_network(self.network, self.out / "weights.safetensors", self.metadata | {"adapted": adapted})
