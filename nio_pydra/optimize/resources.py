"""Memory, threads and precision of the computation."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn

__all__ = ["autocast", "keep_freed_memory", "limit_threads", "place", "return_freed_memory"]

Module = TypeVar("Module", bound=nn.Module)

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
NEVER = 2**31 - 1
LARGE_BLOCK = 2**25
#: Largest grid, in voxels, for which all blocks are kept. This is faster at level 3, but takes memory.
KEPT_VOXELS = 6_000_000


def keep_freed_memory(voxels: int = 0) -> None:
    """Make glibc keep freed memory; with another C library this does nothing.

    A registration allocates and frees the same few hundred megabytes at every step. By default glibc maps each block
    again and the kernel clears its pages, which causes millions of page faults per step. On large grids the largest
    blocks are still returned, because the gaps that they leave would make the process much larger.

    Parameters
    ----------
    voxels : int
        Number of voxels of the network's grid.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    if voxels > KEPT_VOXELS or not mallopt(M_MMAP_THRESHOLD, NEVER):  # older versions refuse more than LARGE_BLOCK
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
    mallopt(M_TRIM_THRESHOLD, NEVER)


def return_freed_memory() -> None:
    """Give back to the system what :func:`keep_freed_memory` kept; with another C library this does nothing."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def limit_threads(threads: int) -> None:
    """Set the number of threads of torch and the compiled kernels."""
    from nio_pydra.system.compiled import set_kernel_threads

    torch.set_num_threads(threads)
    set_kernel_threads(threads)


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Return a context in which convolutions run in `precision`; with ``torch.float32`` it does nothing."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


def place(network: Module, device: torch.device) -> Module:
    """Move a network to a device, in the memory layout with the fastest convolutions there."""
    layout = torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format
    placed: Module = network.to(device=device, memory_format=layout).train()  # type: ignore[call-overload]
    return placed
