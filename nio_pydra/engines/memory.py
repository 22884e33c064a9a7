"""How much memory a registration takes, and how much there is."""

from __future__ import annotations

import logging
import math
import os
from contextlib import suppress
from pathlib import Path

from nio_pydra.errors import InputError

__all__ = ["machine_memory_mb", "predicted_memory_mb", "require_memory"]

log = logging.getLogger("nio_pydra")

BASE_MB = 900.0
"""Libraries, images and transforms, whatever the network's grid."""
BYTES_PER_VOXEL = 1700.0
"""Of the network's grid, where the network is optimised at full resolution."""
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def predicted_memory_mb(shape: tuple[int, int, int]) -> float:
    """Predict the peak memory, in MiB, of a registration that optimises the network at full resolution.

    Parameters
    ----------
    shape : tuple of int
        Of the network's grid.
    """
    return BASE_MB + BYTES_PER_VOXEL * math.prod(shape) / 2**20


def machine_memory_mb() -> float:
    """Return the memory that this process and its children may use together, in MiB."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # no container, or "max"
            limits.append(int(Path(file).read_text()))
    return min(limits) / 2**20


def require_memory(shape: tuple[int, int, int], scans: int) -> None:
    """Refuse to register more scans at a time than memory holds; a single one is only warned about.

    Parameters
    ----------
    shape : tuple of int
        Of the network's grid.
    scans : int
        Registered at the same time.

    Raises
    ------
    InputError
        If more than one scan is predicted not to fit.
    """
    each, there = predicted_memory_mb(shape), machine_memory_mb()
    if scans * each <= there:
        return
    need = f"{scans * each / 2**10:.1f} GB are needed for {scans} scan(s) at a time ({each / 2**10:.1f} GB for each)"
    found = f"{need} and this machine has {there / 2**10:.1f} GB"
    if scans == 1:
        log.warning("About %s: the run may be killed.", found)
        return
    fit = int(there // each)
    raise InputError(f"About {found}: use --nprocs {max(1, fit)}{'' if fit else ', which may still be killed'}.")
