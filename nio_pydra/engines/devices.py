"""Where a network runs, and in which precision."""

from __future__ import annotations

import torch

from nio_pydra.engines.contract import Runtime
from nio_pydra.errors import InputError

__all__ = ["choose_device", "choose_precision"]


def choose_device(runtime: Runtime) -> torch.device:
    """Turn "auto" into a device.

    Raises
    ------
    InputError
        If CUDA is asked for where there is none.
    """
    there = torch.cuda.is_available()
    if runtime.device == "cuda" and not there:
        raise InputError("--device cuda: this machine or this build of PyTorch has no CUDA GPU; use --device cpu.")
    return torch.device("cuda" if there and runtime.device != "cpu" else "cpu")


def choose_precision(runtime: Runtime, device: torch.device) -> torch.dtype:
    """Turn "auto" into the type of the network's convolutions: bfloat16 where it is faster."""
    if runtime.precision == "float32":
        return torch.float32
    if device.type == "cpu":
        # Without the instructions bfloat16 is emulated, and slower than float32.
        supported = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if supported else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
