"""How much memory a registration takes, and how much there is."""

from __future__ import annotations

import logging
import math
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

from nio_pydra.errors import InputError

__all__ = [
    "device_memory_mb",
    "forget_peak_memory",
    "machine_memory_mb",
    "peak_memory_mb",
    "predicted_memory_mb",
    "require_memory",
]

log = logging.getLogger("nio_pydra")

BASE_MB = 400.0
"""Libraries, images and transforms, whatever the network's grid."""
BYTES_PER_VOXEL_KEPT = 970.0
"""Of the network's grid, where all of it is optimised and freed memory is kept (`optimize.resources`)."""
BYTES_PER_VOXEL = 500.0
"""The same on larger grids."""
BYTES_PER_VOXEL_PREDICTED = 400.0
"""Where the highest level only predicts."""
FLOAT32_FACTOR = 1.6
"""How much more it is in float32: not all of it is activations."""
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def predicted_memory_mb(shape: tuple[int, ...], *, optimised: bool, float32: bool) -> float:
    """Predict the peak memory, in MiB, of a registration by the default network, on the CPU or on a GPU.

    Parameters
    ----------
    shape : tuple of int
        Of the network's grid.
    optimised : bool
        Whether the network is optimised at full resolution, or only predicts there.
    float32 : bool
        Whether convolutions are in float32 in place of bfloat16.

    Notes
    -----
    Measured with LapIRN of 28 channels in bfloat16: optimised, 5113 MiB at 160x160x200, 3746 MiB at 160x192x224 and
    8127 MiB at 256x256x256; level 3 predicting only, 2232 MiB at 160x160x200 (`docs/results`).
    In float32, 7879 MiB, optimised at 160x160x200. On a GPU, which was not measured, the same tensors are kept; what
    the CPU needs for libraries stands for the context of CUDA there.
    """
    from nio_pydra.optimize.resources import KEPT_VOXELS

    voxels = math.prod(shape)
    each = BYTES_PER_VOXEL_PREDICTED
    if optimised:
        each = BYTES_PER_VOXEL_KEPT if voxels <= KEPT_VOXELS else BYTES_PER_VOXEL
    return BASE_MB + (FLOAT32_FACTOR if float32 else 1) * each * voxels / 2**20


def machine_memory_mb() -> float:
    """Return the memory that this process and its children may use together, in MiB."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # no container, or "max"
            limits.append(int(Path(file).read_text()))
    return min(limits) / 2**20


def device_memory_mb() -> float:
    """Return the memory of the GPU that is not taken yet, in MiB."""
    import torch

    return torch.cuda.mem_get_info()[0] / 2**20


def forget_peak_memory() -> None:
    """Start measuring the peak anew, that of the GPU too: earlier work of this process must not count.

    That of the process is forgotten where the system can (Linux).
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.modules["torch"].cuda.reset_peak_memory_stats()


def peak_memory_mb() -> float:
    """Largest resident size in MiB since :func:`forget_peak_memory`; elsewhere than on Linux, of the process's life."""
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def require_memory(each: float, scans: int, *, device: bool = False) -> None:
    """Refuse to register more scans at a time than memory holds; a single one is only warned about.

    Parameters
    ----------
    each : float
        Predicted for one scan, MiB.
    scans : int
        Registered at the same time.
    device : bool
        Of the GPU, in place of the machine's.

    Raises
    ------
    InputError
        If more than one scan is predicted not to fit.
    """
    there = device_memory_mb() if device else machine_memory_mb()
    if scans * each <= there:
        return
    need = f"{scans * each / 2**10:.1f} GiB are needed for {scans} scan(s) at a time ({each / 2**10:.1f} GiB for each)"
    where = "the GPU has {:.1f} GiB free" if device else "this machine has {:.1f} GiB"
    found = f"{need} and {where.format(there / 2**10)}"
    if scans == 1:
        log.warning("About %s: the run may %s.", found, "fail" if device else "be killed")
        return
    fit = int(there // each)
    may = "" if fit else f", which may still {'fail' if device else 'be killed'}"
    raise InputError(f"About {found}: use --nprocs {max(1, fit)}{may}.")
