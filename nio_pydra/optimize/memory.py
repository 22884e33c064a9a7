"""Keep freed memory in the process instead of handing it back to the system after every step."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

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
