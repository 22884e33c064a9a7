"""How the scans of a dataset are registered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.methods import Method
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.slurm import require_usable
from nio_pydra.workflows.workers import ForkserverWorker, SerialWorker

__all__ = ["DatasetSettings", "worker_of"]


@dataclass(frozen=True)
class DatasetSettings:
    """How the scans of a dataset are registered.

    Attributes
    ----------
    method : Method
        Engine and settings.
    runtime : Runtime
        Device, precision and seed. The number of threads is that of OMP_NUM_THREADS.
    worker : str
        ``debug`` (one after another), ``cf`` (processes) or ``slurm``.
    n_procs : int
        Number of scans at a time. For ``slurm``, 1 means as many as the cluster allows.
    threads : int or None
        Number of threads of each scan, if it was asked for. Only SLURM jobs read it, otherwise OMP_NUM_THREADS counts.
    slurm_args : str
        Options of sbatch, as in a shell.
    memory_mb : float or None
        Memory that all scans at a time may use together, MiB; fewer are registered at a time where it is too small.
        None: that of the machine, and too many scans at a time are refused.
    stop_on_first_crash : bool
        Whether no other scan is started after one has failed.
    labels_desc : str or None
        ``desc`` of the label images of the scans.
    conformed_mask : bool
        Whether to write the mask of a scan also as fMRIPrep takes it, where fMRIPrep would conform that scan alone.
    jacobian : bool
        Whether the map of the volume change of every registration is written.
    figures : bool
        Whether figures of every registration are drawn, and the page of its participant is written.
    profile : Profile
        What is registered.
    """

    method: Method
    runtime: Runtime
    worker: str = "debug"
    n_procs: int = 1
    memory_mb: float | None = None
    stop_on_first_crash: bool = False
    threads: int | None = None
    slurm_args: str = ""
    labels_desc: str | None = None
    conformed_mask: bool = False
    jacobian: bool = False
    figures: bool = True
    profile: Profile = BRAIN


def worker_of(settings: DatasetSettings) -> Any:
    """Return the pydra worker of a run."""
    if settings.worker == "slurm":
        require_usable(settings.slurm_args)
    return ForkserverWorker if settings.worker == "cf" else SerialWorker
