"""Processor cores and threads."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

__all__ = ["core_count", "default_threads", "processor_name", "threads_asked_for"]


def core_count() -> int:
    """Return the number of cores that this process may use."""
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Return the default number of threads: OMP_NUM_THREADS, else all cores of this process."""
    return threads_asked_for() or core_count()


def threads_asked_for() -> int | None:
    """Return the number in OMP_NUM_THREADS, or None where it is not set or is no positive number.

    It can be a list with a number for each level of nested threads. The first one counts, as in OpenMP.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None


def processor_name() -> str:
    """Return what the processor is called, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
