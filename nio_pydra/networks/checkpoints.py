"""Weights in and out: safetensors with metadata, and the authors' published ``.pth`` files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nio_pydra.errors import ComputationError, InputError
from nio_pydra.networks.lapirn import LapIRN, LapIRNConfig
from nio_pydra.system.files import atomic_path

__all__ = [
    "condition_for",
    "convert",
    "default_weights",
    "load_network",
    "read_metadata",
    "save_network",
    "weights_digest",
]

#: What is known of the authors' checkpoints (their orientation, grid and intensities), as metadata of ours.
PUBLISHED = {
    "orientation": "LIA",
    "voxel_size_mm": 1.0,
    "intensity_scaling": "minmax",
    "lambda": None,
    "training_data": "OASIS-1 brain MRI, neurite preprocessing (Mok & Chung)",
    "licence": "MIT (authors' repository)",
}
#: Their conditional networks learned with a loss of 1.75 LNCC (a pyramid of weights 1, 1/2, 1/4) + 10 c diffusion and
#: are told c (Train_cLapIRN_lite.py of github.com/cwmok/Conditional_LapIRN); see `condition_for`.
PUBLISHED_CONDITION_SCALE = 1.75 / 10
REQUIRED = ("network", "orientation", "voxel_size_mm", "intensity_scaling")


def default_weights() -> Path:
    """Return the path of the weights shipped with the package."""
    return Path(str(resources.files("nio_pydra") / "weights" / "default.safetensors"))


def condition_for(metadata: Mapping[str, Any], weight: float) -> float:
    """What a conditional network has to be told for a given lambda.

    Networks learn lambda in the scale of the authors' training code, ours too, where the same lambda weighs four times
    as much as in instance optimisation (see :class:`nio_pydra.optimize.problem.Objective`).

    Parameters
    ----------
    metadata : mapping
        Of its weights. Where these hold ``condition_scale`` s, the network knows the ratio of diffusion to
        similarity, lambda / (1 - lambda), times s; otherwise lambda itself.
    weight : float
        lambda, in [0, 1].

    Returns
    -------
    float
        In [0, 1], which is all that a network learned.
    """
    scale = metadata.get("condition_scale")
    if scale is None:
        return weight
    return float(min(1.0, scale * weight / max(1.0 - weight, 1e-6)))


def save_network(network: LapIRN, path: Path, metadata: dict[str, Any]) -> None:
    """Write weights and metadata to a safetensors file.

    Parameters
    ----------
    network : LapIRN
        Its configuration is stored under ``network``.
    path : Path
        Written under a temporary name, then renamed.
    metadata : dict
        JSON values: orientation, voxel_size_mm, intensity_scaling, lambda, training_data, licence, ...

    Raises
    ------
    ComputationError
        If a weight is NaN or infinite.
    """
    from safetensors.torch import save

    if broken := _not_finite(network.state_dict()):
        raise ComputationError(f"{path}: the weights {broken} are NaN or infinite, so they were not written.")
    tensors = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in network.state_dict().items()}
    record = {"network": network.config.to_dict(), **metadata}
    with atomic_path(path) as temporary:
        # Not save_file, which makes a file of its own that only its owner may read.
        temporary.write_bytes(save(tensors, {"nio_pydra": json.dumps(record)}))


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a safetensors checkpoint.

    Raises
    ------
    InputError
        If the file is missing, is no safetensors file, or was not written by nio_pydra.
    """
    from safetensors import SafetensorError, safe_open

    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("nio_pydra")
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}): give a file made by nio_pydra, or convert a "
            "published checkpoint with `nio weights convert`."
        ) from None
    metadata = json.loads(stored) if stored else {}
    missing = [key for key in REQUIRED if key not in metadata]
    if missing:
        raise InputError(f"{path} holds no nio_pydra metadata ({', '.join(missing)} missing): was it made elsewhere?")
    return metadata


def load_network(path: Path | None = None) -> tuple[LapIRN, dict[str, Any]]:
    """Load a network and its metadata.

    Parameters
    ----------
    path : Path, optional
        A safetensors file, or one of the authors' ``.pth`` checkpoints. Default: the weights of the package.

    Raises
    ------
    InputError
        If the file cannot be read, or holds weights of another network, or weights that are NaN or infinite.
    """
    path = default_weights() if path is None else Path(path)
    if path.suffix in (".pth", ".pt"):
        return _load_published(path)
    metadata = read_metadata(path)
    from safetensors.torch import load_file

    fields = dict(metadata["network"])
    try:
        config = LapIRNConfig(**{**fields, "head_channels": tuple(fields["head_channels"])})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} describes a network unknown to this version of nio_pydra: {error}.") from None
    network = LapIRN(config)
    _load_state(network, load_file(path), path)
    return network, metadata


def convert(source: Path, target: Path) -> dict[str, Any]:
    """Convert one of the authors' ``.pth`` checkpoints to safetensors; return the metadata written."""
    network, metadata = _load_published(Path(source))
    save_network(network, Path(target), metadata)
    return read_metadata(Path(target))


def weights_digest(path: Path | None = None) -> str:
    """SHA-256 of a weights file (default: the package's)."""
    path = default_weights() if path is None else Path(path)
    _require_file(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _require_file(path: Path) -> None:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such weights file.")


def _load_state(network: LapIRN, state: dict[str, Tensor], path: Path) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if own != found:
        wrong = sorted(set(own.items()) ^ set(found.items()))
        raise InputError(
            f"{path} holds weights of another network: {len(wrong)} tensors differ, the first being "
            f"{wrong[0][0]} {wrong[0][1]}. Use weights made for LapIRN."
        )
    if broken := _not_finite(state):
        raise InputError(f"{path} holds weights that are NaN or infinite ({broken}): use other weights.")
    network.load_state_dict(state)


def _not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor with a NaN or infinite value."""
    return next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), None)


_RENAMES = (
    (r"^model_lvl2\.model_lvl1\.", "levels.0."),
    (r"^model_lvl2\.", "levels.1."),
    (r"^(?!levels\.)", "levels.2."),
    (r"input_encoder_lvl1\.", "encoder."),
    (r"down_conv\.", "down."),
    (r"output_lvl1\.", "head."),
    (r"\.ai1\.", ".norm1."),
    (r"\.ai2\.", ".norm2."),
)


def _own_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    # Their list alternates blocks and activations: blocks are the even entries.
    return re.sub(r"resblock_group_lvl1\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}", name)


def _load_published(path: Path) -> tuple[LapIRN, dict[str, Any]]:
    _require_file(path)
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise InputError(
            f"{path} cannot be read as a PyTorch state dict without running code from it ({type(error).__name__})."
        ) from None
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise InputError(f"{path} is no plain state dict of tensors: expected a published LapIRN checkpoint.")
    state = {_own_name(key): value for key, value in raw.items() if not key.endswith("grid_1")}
    try:
        config = LapIRNConfig(
            # Nothing in the tensors tells the variants apart: the authors' file names do.
            variant="diff" if "diff" in path.name.lower() else "disp",
            encoder_channels=state["levels.0.encoder.0.weight"].shape[0],
            channels=state["levels.0.down.weight"].shape[0],
            head_channels=tuple(state[f"levels.{i}.up.weight"].shape[1] for i in range(3)),
            conditional="levels.0.blocks.0.norm1.style.weight" in state,
        )
    except KeyError as error:
        raise InputError(
            f"{path} holds weights of another network: it has no {error}. Use a LapIRN checkpoint."
        ) from None
    network = LapIRN(config)
    _load_state(network, state, path)
    metadata = {**PUBLISHED, "source": path.name}
    return network, metadata | ({"condition_scale": PUBLISHED_CONDITION_SCALE} if config.conditional else {})
