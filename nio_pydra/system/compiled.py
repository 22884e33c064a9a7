"""CPU loops compiled by numba: the decorator, the place of the compiled code, and the number of threads.

This module imports numba, which is slow. So callers import it, and the kernels that use it, inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numba

from nio_pydra.system.scratch import private_folder

__all__ = ["compiled", "set_kernel_threads"]


def compiled(*, parallel: bool = False, fastmath: Iterable[str] = ()) -> Callable[[Callable], Any]:
    """Compile a function by numba on its first call and keep the result on disk.

    The compiled code is kept beside the function's file or in the user's cache. Where numba can write to neither, as
    in a container with a read-only file system and no home, it is kept in a temporary folder.

    Parameters
    ----------
    parallel : bool
        Share the loops over `numba.prange` among the threads.
    fastmath : iterable of str
        LLVM's flags for changes of the arithmetic that the compiler may make, for example "contract".
    """

    def decorate(function: Callable) -> Any:
        compiler = numba.njit(parallel=parallel, cache=True, fastmath=set(fastmath))
        try:
            return compiler(function)
        except RuntimeError:  # numba finds no folder for its cache
            numba.config.CACHE_DIR = str(private_folder("numba-nio_pydra"))  # type: ignore[attr-defined]
            return compiler(function)

    return decorate


def set_kernel_threads(threads: int) -> None:
    """Set the number of threads of all kernels, limited to the number with which numba started."""
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
