"""Wall time and processor time of the same work."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

__all__ = ["Spent", "Stopwatch"]


@dataclass(frozen=True)
class Spent:
    """Time that some work took.

    Attributes
    ----------
    wall : float
        Seconds on the clock.
    processor : float
        Seconds of all processor cores together, comparable also on a busy machine.
    """

    wall: float
    processor: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.processor + other.processor)


class Stopwatch:
    """Measures time from its creation, of this process and its threads but not its children."""

    def __init__(self) -> None:
        self._started = self._now()

    def read(self) -> Spent:
        """Return the time since the start."""
        now = self._now()
        return Spent(now.wall - self._started.wall, now.processor - self._started.processor)

    @staticmethod
    def _now() -> Spent:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Spent(time.perf_counter(), usage.ru_utime + usage.ru_stime)
