"""The engines ``nio_m``, ``nio``, ``io`` and ``lapirn``, which differ in their settings only.

Both images are converted to the network's space. The first field is predicted there or is zero, refiners improve it,
and the result is converted back to the fixed grid. A new network needs a file in `nio_pydra.networks`. A new refiner
needs a file in `nio_pydra.optimize` and a field of :class:`NetworkSettings`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from nibabel.nifti1 import Nifti1Image

from nio_pydra.engines.contract import Deformation, Engine, Memory, Pair, Runtime
from nio_pydra.engines.devices import choose_device, choose_precision
from nio_pydra.engines.memory import BASE_MB, predicted_memory_mb
from nio_pydra.engines.network_space import NetworkSpace, grid_around, grid_of
from nio_pydra.engines.references import MOK_2020, MOK_2023, SIEBERT_2021, Reference
from nio_pydra.engines.stopwatch import Stopwatch
from nio_pydra.metrics import regularity
from nio_pydra.networks import Network, load_network
from nio_pydra.networks.checkpoints import condition_for, default_weights, weights_digest
from nio_pydra.networks.lapirn import SIZE_MULTIPLE
from nio_pydra.optimize.estimate import Estimate, Refiner
from nio_pydra.optimize.io import IOSettings
from nio_pydra.optimize.nio import NIOSettings
from nio_pydra.optimize.problem import Objective
from nio_pydra.optimize.resources import keep_freed_memory, place
from nio_pydra.spatial.inversion import unfold

__all__ = ["IO", "LAPIRN", "NIO", "NIO_M", "NetworkEngine", "NetworkSettings"]

log = logging.getLogger("nio_pydra")

NO_NETWORK = {"orientation": "LIA", "voxel_size_mm": 1.0, "intensity_scaling": "percentile"}
"""Space and intensities if the first field is zero."""


@dataclass(frozen=True)
class NetworkSettings:
    """First field and refiners.

    Attributes
    ----------
    start : {"network", "zero"}
        First field: predicted by the network, or zero.
    network : NIOSettings or None
        Optimisation of the network. None: it only predicts.
    field : IOSettings or None
        Optimisation of the field after that. None: there is none.
    weights : Path or None
        Checkpoint of the network. None: that of the package.
    smoothings : int
        Average poolings of the B-spline deformation model of the network's field
        (:func:`nio_pydra.optimize.bspline.bspline`), also while the network is optimised. 0: no such model.
    voxel_size_mm : float or None
        Edge of the voxels in which the images are compared. None: that of the images in the network's training.
    """

    start: Literal["network", "zero"] = "network"
    network: NIOSettings | None = None
    field: IOSettings | None = None
    weights: Path | None = None
    smoothings: int = 0
    voxel_size_mm: float | None = None

    def __post_init__(self) -> None:
        if self.smoothings < 0:
            raise ValueError(f"smoothings is {self.smoothings}: expected 0 or more")
        if self.voxel_size_mm is not None and not self.voxel_size_mm > 0:
            raise ValueError(f"voxel_size_mm is {self.voxel_size_mm}: expected a positive number")
        if self.start == "zero" and (self.network is not None or self.weights is not None):
            raise ValueError("start is 'zero', which uses no network: expected no settings of a network and no weights")

    @property
    def optimises(self) -> bool:
        """Whether the network takes steps."""
        return self.network is not None and any(self.network.iterations)

    @property
    def refiners(self) -> list[Refiner]:
        """Refiners of the first field, in order."""
        return [refiner for refiner in (self.network, self.field) if refiner is not None]


class NetworkEngine(Engine):
    """Registration by a network, by optimisation, or by both.

    Parameters
    ----------
    what, references, presets
        See :class:`nio_pydra.engines.contract.Engine`.
    weights : callable
        Function that returns the checkpoint if the settings name none.
    """

    def __init__(
        self,
        what: str,
        references: tuple[Reference, ...],
        presets: Mapping[str, NetworkSettings],
        weights: Callable[[], Path] = default_weights,
    ) -> None:
        self.what, self.references, self.presets, self._weights = what, references, presets, weights

    def run(self, pair: Pair, settings: NetworkSettings, runtime: Runtime) -> Deformation:
        """Register a pair in the network's space.

        Parameters
        ----------
        pair : Pair
            Images, affine and masks.
        settings : NetworkSettings
            First field and refiners.
        runtime : Runtime
            Device, precision and seed.

        Returns
        -------
        Deformation
            Forward field on the fixed grid without folds, and no inverse. The details hold ``weights``, with what
            they were adapted to, ``before_unfolding``, the regularity of the field before folds were removed,
            ``contrast_correlation``, that of the two images after the affine, and ``moving_inverted``, whether the
            moving image was inverted therefore.

        Raises
        ------
        InputError
            If the weights cannot be used, or CUDA is chosen but not available.
        ComputationError
            If the optimisation diverges.
        """
        network, conventions = self._load(settings)
        device = choose_device(runtime)
        torch.manual_seed(runtime.seed)
        watch = Stopwatch()
        fixed = pair.fixed_object
        grid = grid_of(pair, fixed, conventions, _multiple(network))
        keep_freed_memory(math.prod(grid.shape))
        space = NetworkSpace.of(pair, grid, fixed, conventions["intensity_scaling"], device)
        precision = choose_precision(runtime, device)
        log.info("network grid %s, %s, %s", grid.shape, device, str(precision).removeprefix("torch."))
        condition = None
        if network is not None:
            network = place(network, device)
            if network.config.conditional:
                condition = condition_for(conventions, (settings.network or NIOSettings()).objective.weight)
        estimate = Estimate(space.problem, network, condition, precision, runtime.progress, settings.smoothings)
        for refiner in settings.refiners:
            estimate = refiner.refine(estimate)
        folded = space.back(estimate.field)
        forward = unfold(folded)
        spent = watch.read()
        details: dict[str, Any] = {
            "device": str(device),
            "precision": str(precision).removeprefix("torch."),
            "network_grid": list(grid.shape),
            "network_voxel_size_mm": conventions["voxel_size_mm"],
            "contrast_correlation": space.correlation,
            "moving_inverted": space.inverted,
            "before_unfolding": asdict(regularity(folded, pair.fixed_foreground)),
        }
        if network is not None:
            path = settings.weights or self._weights()
            details["weights"] = {
                "name": path.name,
                "sha256": weights_digest(path),
                "training_data": _training_data(conventions),
                "adapted": conventions.get("adapted"),
            }
        if condition is not None:
            details["condition"] = condition
        if device.type == "cuda":
            details["peak_device_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
        return Deformation(forward, None, spent, details)

    def fingerprint(self, settings: NetworkSettings) -> str:
        """Return the digest of the weights, after loading them as a check."""
        if self._load(settings)[0] is None:
            return ""
        return f"weights-{weights_digest(settings.weights or self._weights())[:16]}"

    def weights_used(self, settings: NetworkSettings) -> tuple[str, str] | None:
        """Return the name of the weights, and the training data that their metadata name, adaptation included."""
        network, conventions = self._load(settings)
        if network is None:
            return None
        path = settings.weights or self._weights()
        return path.name, _training_data(conventions)

    def described(self, settings: NetworkSettings) -> str:
        """Return what is done. Without steps of the network it is no Neural Instance Optimization."""
        optimises = any(preset.optimises for preset in self.presets.values())
        if not optimises or settings.optimises or settings.start == "zero":
            return self.what
        return f"LapIRN{', with instance optimisation of the displacement field' if settings.field else ''}"

    def memory_mb(self, fixed_object: Nifti1Image, settings: NetworkSettings, runtime: Runtime) -> Memory:
        """Predict the peak memory of LapIRN; other networks take less."""
        device = choose_device(runtime)
        network, conventions = self._load(settings)
        optimised = settings.network is not None and settings.network.iterations[-1] > 0
        predicted = predicted_memory_mb(
            grid_around(fixed_object, conventions, _multiple(network)).shape,
            optimised=optimised,
            float32=choose_precision(runtime, device) == torch.float32,
        )
        return Memory(predicted) if device.type == "cpu" else Memory(BASE_MB, predicted)

    def processor_minutes(self, settings: NetworkSettings) -> float:
        """Predict the processor time: thrice that of float32 in docs/results/speed.md, for 1 mm brains."""
        low, middle, high = settings.network.iterations if settings.network else (0, 0, 0)
        quarter, half = settings.field.coarse_iterations if settings.field else (0, 0)
        full = settings.field.iterations if settings.field else 0
        return 3 * (60 + 0.5 * low + 3 * middle + 30 * high + 0.05 * quarter + 0.25 * half + 2 * full) / 60

    def _load(self, settings: NetworkSettings) -> tuple[Network | None, Mapping[str, Any]]:
        """Return the network, if there is one, and its conventions."""
        network: Network | None = None
        conventions: Mapping[str, Any] = NO_NETWORK
        if settings.start != "zero":
            network, conventions = load_network(settings.weights or self._weights())
        if settings.voxel_size_mm is not None:
            conventions = {**conventions, "voxel_size_mm": settings.voxel_size_mm}
        if settings.network is not None:
            settings.network.require(network)
        return network, conventions


def _training_data(conventions: Mapping[str, Any]) -> str:
    """Return what weights were trained on, and adapted to, as their metadata say."""
    data = str(conventions.get("training_data", "unknown"))
    if adapted := conventions.get("adapted"):
        data += f"; adapted to {adapted['scans']} scans and to {adapted['atlas']['name']}"
    return data


def _multiple(network: Network | None) -> int:
    """Return the number that divides the size of every axis: of LapIRN without a network."""
    return SIZE_MULTIPLE if network is None else network.size_multiple


FEW_STEPS = NIOSettings(iterations=(20, 0, 0), learning_rate=3e-4, compared="level")
"""Most of the gain comes early and at the first level, where a step costs least."""
TWO_LEVELS = replace(FEW_STEPS, levels=2)
"""The same without the prediction of level 3, which costs most, above all without bfloat16. It brings about as much as
seven steps of the field at full resolution."""
REFINEMENT = IOSettings(
    iterations=21,
    coarse_iterations=(30, 40),
    learning_rate=0.2,
    smoothings=0,
    form="diffeomorphic",
    objective=Objective(weight=0.3, window=11, volume_weight=0.1),
)
"""Refinement of the field, coarse to fine; the coarse steps cost less than the fine ones. Its form keeps the field from
folding. Its penalty of volume change takes the place of a part of the diffusion: at the same overlap the Jacobian
determinants vary much less (docs/results/experiment_1.md)."""

CHEST_MM = 1.5
"""Voxels for the chest: both lungs of a large man take less than 12 GB, and slices of CT are thicker anyway."""
CHEST_SMOOTHINGS, CHEST_AUGMENTATION = 3, 0.035
"""The deformation model and the augmentation of Mok et al. for the chest."""

#: "paper" is the schedule of Mok et al. "precise" adds the refinement of the field, and "fast" puts it in the place of
#: most steps. "adapted" is for weights of `nio adapt`: the network takes no steps, and the field fewer. "draft" is
#: "fast" with fewer steps of both.
#: "chest" is the paper's for lungs. "chest_fast" is "fast" for lungs, whose volume breathing changes. It is smoother,
#: since breathing is, and since most of a lung has little texture but noise.
NIO_M = NetworkEngine(
    "Neural Instance Optimization, coarse to fine: LapIRN's weights are optimised on the pair, level by level",
    (MOK_2023, MOK_2020),
    {
        "paper": NetworkSettings(network=NIOSettings()),
        "precise": NetworkSettings(network=NIOSettings(), field=REFINEMENT),
        "fast": NetworkSettings(network=FEW_STEPS, field=REFINEMENT),
        "adapted": NetworkSettings(
            network=replace(TWO_LEVELS, iterations=(0, 0, 0)), field=replace(REFINEMENT, coarse_iterations=(10, 10))
        ),
        "draft": NetworkSettings(
            network=replace(TWO_LEVELS, iterations=(5, 0, 0)), field=replace(REFINEMENT, iterations=3)
        ),
        "chest": NetworkSettings(
            network=NIOSettings(iterations=(100, 60, 60), augmentation=CHEST_AUGMENTATION),
            smoothings=CHEST_SMOOTHINGS,
            voxel_size_mm=CHEST_MM,
        ),
        "chest_fast": NetworkSettings(
            network=FEW_STEPS,
            field=replace(
                REFINEMENT,
                iterations=28,
                spacing=3,
                smoothings=2,
                objective=replace(REFINEMENT.objective, weight=0.8, volume_weight=0.0),
            ),
            smoothings=CHEST_SMOOTHINGS,
            voxel_size_mm=CHEST_MM,
        ),
    },
)
NIO = NetworkEngine(
    "Neural Instance Optimization of all levels at once",
    (MOK_2023, MOK_2020),
    {
        "paper": NetworkSettings(network=NIOSettings(iterations=(0, 0, 50))),
        "draft": NetworkSettings(network=NIOSettings(iterations=(0, 0, 5))),
    },
)
IO = NetworkEngine(
    "instance optimisation of the displacement field, starting from LapIRN's prediction",
    (SIEBERT_2021, MOK_2023, MOK_2020),
    {
        "paper": NetworkSettings(field=IOSettings()),
        "draft": NetworkSettings(field=IOSettings(iterations=30)),
        "chest": NetworkSettings(
            field=IOSettings(smoothings=CHEST_SMOOTHINGS, augmentation=CHEST_AUGMENTATION),
            smoothings=CHEST_SMOOTHINGS,
            voxel_size_mm=CHEST_MM,
        ),
    },
)
LAPIRN = NetworkEngine(
    "LapIRN, the network alone",
    (MOK_2020,),
    {
        "paper": NetworkSettings(),
        "chest": NetworkSettings(smoothings=CHEST_SMOOTHINGS, voxel_size_mm=CHEST_MM),
    },
)
