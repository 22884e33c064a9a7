"""Checkpoints that the authors of a network published, read into networks of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nio_pydra.errors import InputError
from nio_pydra.networks.interface import Network
from nio_pydra.networks.lapirn import LapIRN, LapIRNConfig
from nio_pydra.networks.mpr import MPR, MPRConfig

__all__ = ["LAPIRN_CONDITION_SCALE", "SUFFIXES", "read_published"]

SUFFIXES = (".pth", ".pt", ".ckpt")

#: What is known of LapIRN's checkpoints (their orientation, grid and intensities), as metadata of ours.
LAPIRN_METADATA = {
    "orientation": "LIA",
    "voxel_size_mm": 1.0,
    "intensity_scaling": "minmax",
    "lambda": None,
    "training_data": "OASIS-1 brain MRI, neurite preprocessing (Mok & Chung)",
    "licence": "MIT (authors' repository)",
}
#: Their conditional networks learned with a loss of 1.75 LNCC (a pyramid of weights 1, 1/2, 1/4) + 10 c diffusion and
#: are told c (Train_cLapIRN_lite.py of github.com/cwmok/Conditional_LapIRN); see `checkpoints.condition_for`.
LAPIRN_CONDITION_SCALE = 1.75 / 10
LAPIRN_RENAMES = (
    (r"^model_lvl2\.model_lvl1\.", "levels.0."),
    (r"^model_lvl2\.", "levels.1."),
    (r"^(?!levels\.)", "levels.2."),
    (r"input_encoder_lvl1\.", "encoder."),
    (r"down_conv\.", "down."),
    (r"output_lvl1\.", "head."),
    (r"\.ai1\.", ".norm1."),
    (r"\.ai2\.", ".norm2."),
)
#: Layers of MultiPropReg's checkpoints, which hold most of them twice: once more in the list `enc`.
MPR_LAYERS = {
    **{f"enc.{i}.main": f"fine_features.{2 * i}" for i in range(3)},
    **{f"enc.{3 + i}.main": f"coarse_features.{2 * i}" for i in range(3)},
    **{
        theirs.format(n): f"{scale}.{ours}"
        for n, scale in ((2, "coarse"), (1, "fine"))
        for theirs, ours in (
            ("conv{}_0.main", "matching.0"),
            ("conv{}_1.main", "matching.1"),
            ("conv{}_2.main", "matching.2"),
            ("predict_flow{}a", "velocity"),
            ("dc_conv{}_0.0", "refining.0"),
            ("dc_conv{}_1.0", "refining.1"),
            ("dc_conv{}_2.0", "refining.2"),
            ("predict_flow{}b", "correction"),
        )
    },
}
#: What is known of them. The authors' inference script reads images in LAS, as its atlas lies, though another atlas in
#: the package lies in LIA. On two pairs of OASIS scans the weights reach a mean Dice of 0.509 in LAS and 0.490 in LIA;
#: scaled by the extremes, as that script does, 0.484 and 0.479 (affine 0.387).
MPR_METADATA = {
    "orientation": "LAS",
    "voxel_size_mm": 1.0,
    "intensity_scaling": "percentile",
    "lambda": None,
    "training_data": "not stated by the authors (MultiPropReg 0.1.1)",
    "licence": "MIT (authors' package)",
}


def read_published(path: Path) -> tuple[Network, dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint that the authors of a network published.

    Parameters
    ----------
    path : Path
        A state dict as PyTorch saves it, of LapIRN, conditional LapIRN or MultiPropReg.

    Returns
    -------
    network : Network
        Of the checkpoint's shape, not yet with its weights.
    state : dict of Tensor
        Its weights, under our names.
    metadata : dict
        What is known of them.

    Raises
    ------
    InputError
        If the file is no such checkpoint.
    """
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise InputError(
            f"{path} cannot be read as a PyTorch state dict without running code from it ({type(error).__name__})."
        ) from None
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise InputError(
            f"{path} is no plain state dict of tensors: expected a published checkpoint of LapIRN or MultiPropReg."
        )
    return _mpr(raw, path) if "predict_flow2a.weight" in raw else _lapirn(raw, path)


def _mpr(raw: Mapping[str, Tensor], path: Path) -> tuple[Network, dict[str, Tensor], dict[str, Any]]:
    state = {}
    for key, value in raw.items():
        layer, _, kind = key.rpartition(".")
        repeated = layer.startswith("enc.") and layer not in MPR_LAYERS
        if kind != "grid" and not repeated:
            state[f"{MPR_LAYERS.get(layer, layer)}.{kind}"] = value
    return MPR(MPRConfig()), state, {**MPR_METADATA, "source": path.name}


def _lapirn(raw: Mapping[str, Tensor], path: Path) -> tuple[Network, dict[str, Tensor], dict[str, Any]]:
    state = {_lapirn_name(key): value for key, value in raw.items() if not key.endswith("grid_1")}
    try:
        config = LapIRNConfig(
            # Nothing in the tensors tells the variants apart: the authors' file names do.
            variant="diff" if "diff" in path.name.lower() else "disp",
            encoder_channels=state["levels.0.encoder.0.weight"].shape[0],
            channels=state["levels.0.down.weight"].shape[0],
            head_channels=tuple(state[f"levels.{i}.up.weight"].shape[1] for i in range(3)),  # type: ignore[arg-type]
            conditional="levels.0.blocks.0.norm1.style.weight" in state,
        )
    except KeyError as error:
        raise InputError(
            f"{path} holds weights of another network: it has no {error}. Use a LapIRN checkpoint."
        ) from None
    scale = {"condition_scale": LAPIRN_CONDITION_SCALE} if config.conditional else {}
    return LapIRN(config), state, {**LAPIRN_METADATA, "source": path.name, **scale}


def _lapirn_name(name: str) -> str:
    for pattern, replacement in LAPIRN_RENAMES:
        name = re.sub(pattern, replacement, name)
    # Their list alternates blocks and activations: blocks are the even entries.
    return re.sub(r"resblock_group_lvl1\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}", name)
