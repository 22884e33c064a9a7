"""Workflows: one scan, all scans of a dataset, and the workers (Pydra); registration inside fMRIPrep (Nipype)."""

from typing import Any

__all__ = ["ForkserverWorker"]


def __getattr__(name: str) -> Any:
    """Import the worker, and pydra with it, when it is asked for."""
    if name != "ForkserverWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nio_pydra.workflows.workers import ForkserverWorker

    return ForkserverWorker
