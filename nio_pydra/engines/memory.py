"""Memory that a registration needs, and memory of the machine."""

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
    "UNKNOWN_MB",
    "forget_peak_memory",
    "machine_memory_mb",
    "peak_memory_mb",
    "predicted_memory_mb",
    "require_memory",
    "scans_that_fit",
]

log = logging.getLogger("nio_pydra")

BASE_MB = 400.0
"""Memory of libraries, images and transforms, the same for every grid."""
BYTES_PER_VOXEL_KEPT = 970.0
"""Per voxel of the network's grid, if all levels are optimised and freed memory is kept (`optimize.resources`)."""
BYTES_PER_VOXEL = 500.0
"""The same on larger grids, where freed memory is returned."""
BYTES_PER_VOXEL_PREDICTED = 400.0
"""The same if the highest level only predicts."""
FLOAT32_FACTOR = 1.6
"""Factor for float32; less than 2, because not all memory holds activations."""
UNKNOWN_MB = 3072.0
"""Guess for engines that do not predict their memory."""
CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def predicted_memory_mb(shape: tuple[int, ...], *, optimised: bool, float32: bool) -> float:
    """Return the predicted peak memory, in MiB, of a registration by the default network on the CPU or a GPU.

    Parameters
    ----------
    shape : tuple of int
        Shape of the network's grid.
    optimised : bool
        Whether the network is optimised at full resolution; otherwise it only predicts there.
    float32 : bool
        Whether convolutions run in float32 instead of bfloat16.

    Notes
    -----
    Measured with LapIRN of 28 channels (`docs/results`). Optimised in bfloat16: 5113 MiB at 160x160x200, 3746 MiB at
    160x192x224 and 8127 MiB at 256x256x256. Optimised in float32: 7879 MiB at 160x160x200. Level 3 predicting only, in
    bfloat16: 2232 MiB at 160x160x200. The GPU was not measured. It keeps the same tensors, and its CUDA context is
    estimated by the memory of the libraries on the CPU.
    """
    from nio_pydra.optimize.resources import KEPT_VOXELS

    voxels = math.prod(shape)
    each = BYTES_PER_VOXEL_PREDICTED
    if optimised:
        each = BYTES_PER_VOXEL_KEPT if voxels <= KEPT_VOXELS else BYTES_PER_VOXEL
    return BASE_MB + (FLOAT32_FACTOR if float32 else 1) * each * voxels / 2**20


def machine_memory_mb() -> float:
    """Return the memory, in MiB, that this process and its children can use together."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _limit_files():
        with suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(file.read_text()))
    return min(limits) / 2**20


def _limit_files() -> list[Path]:
    """Return where limits of memory can stand: of the control group of this process, and of those that hold it.

    A container sees its own group as the root; a job of SLURM sees all of them.
    """
    files = [CONTROL_GROUPS / "memory.max", CONTROL_GROUPS / "memory" / "memory.limit_in_bytes"]
    with suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controller, own = line.split(":", 2)
            if controller in ("", "memory"):
                name, root = "memory.limit_in_bytes" if controller else "memory.max", CONTROL_GROUPS / controller
                place = root / own.lstrip("/")
                files += [folder / name for folder in (place, *place.parents) if folder.is_relative_to(root)]
    return files


def forget_peak_memory() -> None:
    """Reset the peak memory of the process (on Linux) and of the GPU, so that earlier work does not count."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.modules["torch"].cuda.reset_peak_memory_stats()


def peak_memory_mb() -> float:
    """Return the peak memory of the process in MiB, on Linux since :func:`forget_peak_memory`, else since its start."""
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def scans_that_fit(each: float, scans: int, limit: float) -> int:
    """Return how many scans fit into a limit of memory at the same time: at least one, at most those given.

    Parameters
    ----------
    each : float
        Predicted memory of one scan, MiB.
    scans : int
        Number of scans that the user wants at a time.
    limit : float
        Memory that the user allows, MiB. That of the machine counts if it is smaller.
    """
    return max(1, min(scans, int(min(limit, machine_memory_mb()) // each)))


def require_memory(each: float, scans: int, *, device: bool = False) -> None:
    """Refuse to register more scans at a time than fit into memory; for a single one, log a warning.

    Parameters
    ----------
    each : float
        Predicted memory of one scan, MiB.
    scans : int
        Number of scans that are registered at the same time.
    device : bool
        Whether the memory is that of the GPU.

    Raises
    ------
    InputError
        If several scans do not fit.
    """
    if device:
        import torch

        available, machine, outcome = torch.cuda.mem_get_info()[0] / 2**20, "the GPU has {:.1f} GiB free", "fail"
    else:
        available, machine, outcome = machine_memory_mb(), "this machine has {:.1f} GiB", "be killed"
    if scans * each <= available:
        return
    need = f"{scans * each / 2**10:.1f} GiB are needed for {scans} scan(s) at a time ({each / 2**10:.1f} GiB for each)"
    has = machine.format(available / 2**10)
    if scans == 1:
        log.warning("About %s and %s: the run may %s.", need, has, outcome)
        return
    fit = int(available // each)
    warning = "" if fit else f", which may still {outcome}"
    raise InputError(f"About {need} and {has}: use --nprocs {max(1, fit)}{warning}.")
