"""Weights in and out: safetensors with metadata, and the files that authors of networks published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nio_pydra.errors import ComputationError, InputError
from nio_pydra.networks.interface import ARCHITECTURES, Network, architecture_class
from nio_pydra.networks.published import SUFFIXES, read_published
from nio_pydra.system.files import atomic_path

__all__ = [
    "adaptation_of",
    "condition_for",
    "convert",
    "default_weights",
    "load_network",
    "read_metadata",
    "save_network",
    "weights_digest",
]

REQUIRED = ("network", "orientation", "voxel_size_mm", "intensity_scaling")
UNNAMED = "lapirn"  # the architecture of files that name none, which were written when there was no other


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


def save_network(network: Network, path: Path, metadata: dict[str, Any]) -> None:
    """Write weights and metadata to a safetensors file.

    Parameters
    ----------
    network : Network
        Its architecture and configuration are stored under ``architecture`` and ``network``.
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
    record = {"architecture": network.architecture, "network": network.config.to_dict(), **metadata}
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


def adaptation_of(path: Path) -> dict[str, Any] | None:
    """Return what weights were adapted to (:mod:`nio_pydra.training.adaptation`). None: to nothing.

    Raises
    ------
    InputError
        As :func:`read_metadata`.
    """
    return None if path.suffix in SUFFIXES else read_metadata(path).get("adapted")


def load_network(path: Path | None = None) -> tuple[Network, dict[str, Any]]:
    """Load a network and its metadata.

    Parameters
    ----------
    path : Path, optional
        A safetensors file, or a checkpoint that a network's authors published (``.pth``, ``.ckpt``). Default: the
        weights of the package.

    Returns
    -------
    network : Network
        Of the architecture that the metadata name.
    metadata : dict
        As :func:`save_network` wrote it.

    Raises
    ------
    InputError
        If the file cannot be read, its architecture is unknown, or it holds weights of another network, or weights
        that are NaN or infinite.
    """
    path = default_weights() if path is None else Path(path)
    _require_file(path)
    if path.suffix in SUFFIXES:
        network, state, metadata = read_published(path)
    else:
        from safetensors.torch import load_file

        metadata = read_metadata(path)
        network, state = _build(metadata, path), load_file(path)
    _load_state(network, state, path)
    return network, metadata


def _build(metadata: Mapping[str, Any], path: Path) -> Network:
    """Build the network that metadata describe."""
    name = metadata.get("architecture", UNNAMED)
    if name not in ARCHITECTURES:
        raise InputError(
            f"{path} holds a network of the architecture {name!r}, which this version of nio_pydra lacks: it has "
            f"{', '.join(ARCHITECTURES)}."
        )
    found = architecture_class(name)
    try:
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in metadata["network"].items()}
        return found(found.config_class(**fields))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path} describes a network unknown to this version of nio_pydra: {error}.") from None


def convert(source: Path, target: Path) -> dict[str, Any]:
    """Convert a published checkpoint to safetensors; return the metadata written."""
    network, metadata = load_network(Path(source))
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


def _load_state(network: Network, state: dict[str, Tensor], path: Path) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if own != found:
        wrong = sorted(set(own.items()) ^ set(found.items()))
        raise InputError(
            f"{path} holds weights of another network: {len(wrong)} tensors differ, the first being "
            f"{wrong[0][0]} {wrong[0][1]}. Use weights made for {type(network).__name__}."
        )
    if broken := _not_finite(state):
        raise InputError(f"{path} holds weights that are NaN or infinite ({broken}): use other weights.")
    network.load_state_dict(state)


def _not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor with a NaN or infinite value."""
    return next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), None)
