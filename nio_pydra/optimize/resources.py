"""Memory, threads and precision of the computation."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn

__all__ = ["autocast", "keep_freed_memory", "limit_threads", "place"]

Module = TypeVar("Module", bound=nn.Module)

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
NEVER = 2**31 - 1
LARGE_BLOCK = 2**25
#: Grids of at most so many voxels keep all blocks, which is faster at level 3; memory is the price.
KEPT_VOXELS = 6_000_000


def keep_freed_memory(voxels: int = 0) -> None:
    """Raise glibc's limits for returning blocks; does nothing where the C library is another one.

    A registration allocates and frees the same few hundred megabytes at every step. By default glibc maps each
    block anew and the kernel clears its pages again: millions of page faults per step. On large grids the largest
    blocks are still returned, because the holes that they would leave make the process much larger.

    Parameters
    ----------
    voxels : int
        Of the grid to work on.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    if voxels > KEPT_VOXELS or not mallopt(M_MMAP_THRESHOLD, NEVER):  # older versions refuse more than LARGE_BLOCK
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
    mallopt(M_TRIM_THRESHOLD, NEVER)


def limit_threads(threads: int) -> None:
    """Make torch and the compiled kernels use this many threads."""
    from nio_pydra.system.compiled import set_kernel_threads

    torch.set_num_threads(threads)
    set_kernel_threads(threads)


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Context in which convolutions run in `precision`; with ``torch.float32`` it does nothing."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


def place(network: Module, device: torch.device) -> Module:
    """Bring a network to a device, its weights in the layout whose convolutions are fastest there."""
    layout = torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format
    placed: Module = network.to(device=device, memory_format=layout).train()  # type: ignore[call-overload]
    return placed
