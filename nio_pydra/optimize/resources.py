"""Memory and threads of this process."""

from __future__ import annotations

import ctypes

import torch

__all__ = ["keep_freed_memory", "limit_threads"]

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGE = 2**31 - 1


def keep_freed_memory() -> None:
    """Raise glibc's limits for returning blocks; does nothing where the C library is another one.

    A registration allocates and frees the same few hundred megabytes at every step. By default glibc maps each large
    block anew and the kernel clears its pages again: millions of page faults per step.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGE)
    mallopt(M_TRIM_THRESHOLD, LARGE)


def limit_threads(threads: int) -> None:
    """Make torch and the compiled kernels use this many threads."""
    from nio_pydra.spatial.kernels import set_kernel_threads

    torch.set_num_threads(threads)
    set_kernel_threads(threads)
