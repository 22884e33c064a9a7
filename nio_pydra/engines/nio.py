"""The engines ``nio_m``, ``nio``, ``io`` and ``lapirn``: one chain, four schedules.

Conform both brains to the network's space, predict and optimise there, bring the field back to the fixed grid.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image

from nio_pydra.engines.contract import Deformation, Pair, Runtime, brain_only
from nio_pydra.engines.memory import BASE_MB, predicted_memory_mb
from nio_pydra.engines.stopwatch import Stopwatch
from nio_pydra.errors import InputError
from nio_pydra.metrics import regularity
from nio_pydra.networks.checkpoints import condition_for, default_weights, load_network, weights_digest
from nio_pydra.networks.lapirn import SIZE_MULTIPLE
from nio_pydra.optimize.io import IOSettings, optimize_field
from nio_pydra.optimize.nio import NIOSettings, optimize_network
from nio_pydra.optimize.problem import TensorPair
from nio_pydra.optimize.resources import keep_freed_memory
from nio_pydra.spatial.conform import NetworkGrid, network_grid, scale_intensities, to_displacement_field
from nio_pydra.spatial.inversion import unfold

__all__ = ["PRESETS", "NetworkEngineSettings", "choose_device", "choose_precision", "predicted_memory", "run"]

log = logging.getLogger("nio_pydra")


@dataclass(frozen=True)
class NetworkEngineSettings:
    """A network's schedule, optionally followed by refinement of the field.

    Attributes
    ----------
    nio : NIOSettings
        Optimisation of the network; without iterations it only predicts.
    io : IOSettings or None
        Refinement of the predicted field.
    weights : Path or None
        Checkpoint; None: the package's.
    """

    nio: NIOSettings
    io: IOSettings | None = None
    weights: Path | None = None


PREDICT = NIOSettings(iterations=(0, 0, 0))

#: "paper" is what Mok et al. 2023 use; "draft" is for trying things out. Most of the gain comes early and at the
#: lower levels, so a draft of NIO_m stops there; "fast" refines the field itself after that, which costs little, and
#: "precise" does so after the whole schedule of the paper.
PRESETS: dict[str, dict[str, NetworkEngineSettings]] = {
    "nio_m": {
        "paper": NetworkEngineSettings(NIOSettings()),
        "precise": NetworkEngineSettings(NIOSettings(), IOSettings(iterations=30, smoothings=0)),
        "fast": NetworkEngineSettings(NIOSettings(iterations=(20, 10, 0)), IOSettings(iterations=60, smoothings=0)),
        "draft": NetworkEngineSettings(NIOSettings(iterations=(20, 12, 0))),
    },
    "nio": {
        "paper": NetworkEngineSettings(NIOSettings(iterations=(0, 0, 50))),
        "draft": NetworkEngineSettings(NIOSettings(iterations=(0, 0, 5))),
    },
    "io": {
        "paper": NetworkEngineSettings(PREDICT, IOSettings()),
        "draft": NetworkEngineSettings(PREDICT, IOSettings(iterations=30)),
    },
    "lapirn": {"paper": NetworkEngineSettings(PREDICT)},
}


def run(pair: Pair, settings: NetworkEngineSettings, runtime: Runtime) -> Deformation:
    """Register a pair with a network.

    Parameters
    ----------
    pair : Pair
        Images, affine and masks.
    settings : NetworkEngineSettings
        One of `PRESETS`, or your own.
    runtime : Runtime
        Device, threads, precision.

    Returns
    -------
    Deformation
        Forward field on the fixed grid, without folds; no inverse. Its details hold ``weights`` and the regularity
        of the network's own field, ``before_unfolding``.

    Raises
    ------
    InputError
        If the weights cannot be used, or CUDA is asked for and not there.
    """
    network, metadata = load_network(settings.weights)
    device = choose_device(runtime)
    torch.manual_seed(runtime.seed)
    watch = Stopwatch()
    brain = brain_only(pair.fixed, pair.fixed_mask)
    grid = _grid(brain, metadata)
    keep_freed_memory(math.prod(grid.shape))
    tensors = _tensors(pair, brain, grid, metadata["intensity_scaling"], device)
    precision = choose_precision(runtime, device)
    log.info("network grid %s, %s, %s", grid.shape, device, str(precision).removeprefix("torch."))
    told = condition_for(metadata, settings.nio.objective.weight) if network.config.conditional else None
    field = optimize_network(
        network, tensors, settings.nio, condition=told, precision=precision, progress=runtime.progress
    )
    if settings.io is not None:
        field = optimize_field(field, tensors, settings.io, progress=runtime.progress)
    folded = to_displacement_field(field, grid, pair.fixed)
    forward = unfold(folded)
    spent = watch.read()
    path = settings.weights or default_weights()
    details: dict[str, Any] = {
        "device": str(device),
        "precision": str(precision).removeprefix("torch."),
        "network_grid": list(grid.shape),
        "before_unfolding": asdict(regularity(folded, pair.fixed_brain)),
        "weights": {"name": path.name, "sha256": weights_digest(path)},
    }
    if told is not None:
        details["condition"] = told
    if device.type == "cuda":
        details["peak_device_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return Deformation(forward, None, spent, details)


def choose_device(runtime: Runtime) -> torch.device:
    """Turn "auto" into a device, and refuse CUDA where there is none."""
    there = torch.cuda.is_available()
    if runtime.device == "cuda" and not there:
        raise InputError("--device cuda: this machine or this build of PyTorch has no CUDA GPU; use --device cpu.")
    return torch.device("cuda" if there and runtime.device != "cpu" else "cpu")


def predicted_memory(
    fixed: Nifti1Image, mask: Nifti1Image | None, settings: NetworkEngineSettings, runtime: Runtime
) -> tuple[float, float]:
    """Predict the peak memory, of the process and of the GPU, in MiB, from the fixed image (and its mask)."""
    device = choose_device(runtime)
    predicted = predicted_memory_mb(
        _grid(brain_only(fixed, mask), load_network(settings.weights)[1]).shape,
        optimised=settings.nio.iterations[-1] > 0,
        float32=choose_precision(runtime, device) == torch.float32,
    )
    return (predicted, 0.0) if device.type == "cpu" else (BASE_MB, predicted)


def _grid(brain: Nifti1Image, metadata: Mapping[str, Any]) -> NetworkGrid:
    return network_grid(
        brain,
        np.asanyarray(brain.dataobj) != 0,
        orientation=metadata["orientation"],
        voxel_size_mm=metadata["voxel_size_mm"],
        multiple=SIZE_MULTIPLE,
    )


def choose_precision(runtime: Runtime, device: torch.device) -> torch.dtype:
    """Turn "auto" into the type of the network's convolutions: bfloat16 where it is faster."""
    if runtime.precision == "float32":
        return torch.float32
    if device.type == "cpu":
        # Without the instructions bfloat16 is emulated, and slower than float32.
        supported = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if supported else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32


def _tensors(pair: Pair, fixed_brain: Nifti1Image, grid: NetworkGrid, scaling: str, device: torch.device) -> TensorPair:
    fixed = grid.sample(fixed_brain)
    moving = grid.sample(brain_only(pair.moving, pair.moving_mask), pair.affine)
    if not moving.any():
        raise InputError(
            "after the affine alignment no part of the moving brain lies on the fixed brain: "
            "the alignment failed, check both images and masks."
        )
    weights = None
    if pair.lesion_mask is not None:
        outside = (np.asanyarray(pair.lesion_mask.dataobj) == 0).astype(np.float32)
        # Sampled as a lesion and inverted afterwards, so that beyond the image there is no lesion.
        lesion = grid.sample(Nifti1Image(1 - outside, pair.lesion_mask.affine), pair.affine)
        weights = torch.from_numpy(1 - lesion)[None, None].to(device)
    return TensorPair(
        scale_intensities(fixed, scaling).to(device),
        scale_intensities(moving, scaling).to(device),
        moving_weights=weights,
    )
