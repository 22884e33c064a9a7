"""How tasks learn the number of threads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Runtime

__all__ = ["task_runtime"]


def task_runtime(device: str = "cpu", seed: int = 0, precision: str = "auto") -> Runtime:
    """Return the runtime of a task, with OMP_NUM_THREADS threads (all cores where that is not set).

    The number is no input of the tasks: a run that is continued with other threads shall find what is done. The
    record says how many were used.
    """
    from nio_pydra.engines.contract import Runtime

    return Runtime(device=device, seed=seed, precision=precision, threads=int(os.environ.get("OMP_NUM_THREADS") or 0))
