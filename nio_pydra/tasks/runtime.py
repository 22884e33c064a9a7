"""How tasks learn the number of threads, and where their temporary files go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Runtime

__all__ = ["task_runtime"]


def task_runtime(device: str = "cpu", seed: int = 0, precision: str = "auto") -> Runtime:
    """Return the runtime of a task; its temporary files go into the task's own folder, which is the current one.

    The number of threads, which OMP_NUM_THREADS decides, is no input of the tasks: a run that is continued with other
    threads must find what is done. The record says how many were used.
    """
    from nio_pydra.engines.contract import Runtime

    return Runtime(device=device, seed=seed, precision=precision, scratch=Path.cwd())
