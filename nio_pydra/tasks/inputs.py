"""Inputs of tasks, which pydra wants flat, as the groups that the engines take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Runtime, ScanFiles

__all__ = ["scan_files", "task_runtime"]


def task_runtime(device: str = "cpu", seed: int = 0, precision: str = "auto") -> Runtime:
    """Return the runtime of a task; its temporary files go into the task's own folder, which is the current one.

    The number of threads, which OMP_NUM_THREADS decides, is no input of the tasks: a run that is continued with other
    threads must find what is done. The record says how many were used.
    """
    from nio_pydra.engines.contract import Runtime

    return Runtime(device=device, seed=seed, precision=precision, scratch=Path.cwd())  # type: ignore[arg-type]


def scan_files(
    image: os.PathLike[str], *, skull_stripped: bool = False, **others: os.PathLike[str] | None
) -> ScanFiles:
    """Return an image and what belongs to it as one group; see :class:`nio_pydra.engines.contract.ScanFiles`."""
    from nio_pydra.engines.contract import ScanFiles

    paths = {name: None if path is None else Path(path) for name, path in others.items()}
    return ScanFiles(Path(image), skull_stripped=skull_stripped, **paths)  # type: ignore[arg-type]
