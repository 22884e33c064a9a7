"""Device and precision of a network."""

from __future__ import annotations

import torch

from nio_pydra.engines.contract import Runtime
from nio_pydra.errors import InputError

__all__ = ["choose_device", "choose_precision"]


def choose_device(runtime: Runtime) -> torch.device:
    """Return the device for a runtime.

    Raises
    ------
    InputError
        If CUDA is chosen but not available.
    """
    available = torch.cuda.is_available()
    if runtime.device == "cuda" and not available:
        raise InputError("--device cuda: this machine or this build of PyTorch has no CUDA GPU. Use --device cpu.")
    return torch.device("cuda" if available and runtime.device != "cpu" else "cpu")


def choose_precision(runtime: Runtime, device: torch.device) -> torch.dtype:
    """Return the type of the network's convolutions; "auto" is bfloat16 where that is faster."""
    if runtime.precision == "float32":
        return torch.float32
    if device.type == "cpu":
        # Without these instructions bfloat16 is emulated, which is slower than float32.
        supported = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if supported else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
