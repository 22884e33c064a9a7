"""Inputs of tasks: pydra wants them flat, the engines take them in groups."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import Factory

from nio_pydra.version import source_digest

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Runtime, ScanFiles

__all__ = ["CODE_VERSION", "code_version", "scan_files", "task_runtime"]

PROGRAMS = ("antspyx", "deepbet")
"""Packages that find masks and affines, so that results of every engine depend on them."""


def code_version() -> str:
    """Return the digest of the package's source and the versions of `PROGRAMS`."""
    return "+".join([source_digest(), *(f"{name}-{version(name)}" for name in PROGRAMS)])


CODE_VERSION = Factory(code_version)
"""Default `version` of every task: pydra computes it when a task is made."""


def task_runtime(device: str = "cpu", seed: int = 0, precision: str = "auto") -> Runtime:
    """Return the runtime of a task. Its temporary files go into the task's folder, which is the current one.

    The number of threads is not an input of the tasks, so that a run can be continued with another number.
    OMP_NUM_THREADS sets it, and the record holds it.
    """
    from nio_pydra.engines.contract import Runtime

    return Runtime(device=device, seed=seed, precision=precision, scratch=Path.cwd())  # type: ignore[arg-type]


def scan_files(
    image: os.PathLike[str], *, skull_stripped: bool = False, **others: os.PathLike[str] | None
) -> ScanFiles:
    """Return an image and what belongs to it as :class:`nio_pydra.engines.contract.ScanFiles`."""
    from nio_pydra.engines.contract import ScanFiles

    paths = {name: None if path is None else Path(path) for name, path in others.items()}
    return ScanFiles(Path(image), skull_stripped=skull_stripped, **paths)  # type: ignore[arg-type]
