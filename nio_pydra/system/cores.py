"""Processor cores and threads."""

from __future__ import annotations

import os

__all__ = ["core_count", "default_threads", "threads_asked_for"]


def core_count() -> int:
    """Return how many cores this process may use."""
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Return the number of threads where no option gives one: OMP_NUM_THREADS, else all cores of this process."""
    return threads_asked_for() or core_count()


def threads_asked_for() -> int | None:
    """Return what OMP_NUM_THREADS says, or None where it is not set or makes no sense.

    As OpenMP reads it: of a list, which has a number for each level of nested threads, the first one counts.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None
