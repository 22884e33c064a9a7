"""Wall time and processor time of the same stretch of work."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

__all__ = ["Spent", "Stopwatch"]


@dataclass(frozen=True)
class Spent:
    """What a stretch of work took.

    Attributes
    ----------
    wall : float
        Seconds on the clock.
    processor : float
        Seconds of all processor cores together: comparable on a busy machine too.
    """

    wall: float
    processor: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.processor + other.processor)


class Stopwatch:
    """Starts when it is made; counts this process and its threads, not its children."""

    def __init__(self) -> None:
        self._started = self._now()

    def read(self) -> Spent:
        """Return what was spent since the start."""
        now = self._now()
        return Spent(now.wall - self._started.wall, now.processor - self._started.processor)

    @staticmethod
    def _now() -> Spent:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Spent(time.perf_counter(), usage.ru_utime + usage.ru_stime)
