"""CPU loops compiled by numba: the decorator for them, where their code is kept, and how many threads they take.

Importing this module costs the import of numba, so callers import it, and the kernels that it compiles, late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numba

from nio_pydra.system.scratch import private_folder

__all__ = ["compiled", "set_kernel_threads"]


def compiled(*, parallel: bool = False, fastmath: Iterable[str] = ()) -> Callable[[Callable], Any]:
    """Compile a function by numba on its first call and keep the result on disk.

    The result is kept beside the function's file or in the user's cache. Where numba may write to neither, as in a
    container with a read-only file system and no home, it is kept among temporary files.

    Parameters
    ----------
    parallel : bool
        Share the loops over `numba.prange` among the threads.
    fastmath : iterable of str
        LLVM's flags: what the compiler may do with the arithmetic, for example "contract".
    """

    def decorate(function: Callable) -> Any:
        compiler = numba.njit(parallel=parallel, cache=True, fastmath=set(fastmath))
        try:
            return compiler(function)
        except RuntimeError:  # numba has no place for its cache
            numba.config.CACHE_DIR = str(private_folder("numba-nio_pydra"))  # type: ignore[attr-defined]
            return compiler(function)

    return decorate


def set_kernel_threads(threads: int) -> None:
    """Limit the threads of all kernels (never more than numba started with)."""
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
