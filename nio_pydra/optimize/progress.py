"""Progress of an optimisation: a bar on a terminal, plain lines otherwise; and an end to one that diverges."""

from __future__ import annotations

import logging
import math
import sys
import time
from types import TracebackType

import torch
from torch import Tensor

from nio_pydra.errors import ComputationError

__all__ = ["Progress", "finite_field"]

SECONDS_BETWEEN_LINES = 20.0
DIVERGED = "Compute in float32 (--precision float32); if that does not help, the weights or the images are damaged."
log = logging.getLogger("nio_pydra")


def finite_field(field: Tensor) -> Tensor:
    """Return a field, or raise `ComputationError` if a number in it is NaN or infinite."""
    if not torch.isfinite(field).all():
        raise ComputationError(f"The registration diverged: its field holds NaN or infinite numbers. {DIVERGED}")
    return field


class Progress:
    """Reports steps of known number.

    Parameters
    ----------
    total : int
        Number of steps.
    label : str
        What is being done.
    show : bool or None
        None: only where standard error is a terminal, or logging is configured to take the lines.
    """

    def __init__(self, total: int, label: str, show: bool | None = None) -> None:
        self.total, self.label = total, label
        self.done = 0
        self.started = self.reported = time.monotonic()
        self.bar = None
        if show is not False and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=label, unit="step", dynamic_ncols=True)
        self.lines = show is not False and self.bar is None

    def step(self, level: int, loss: float) -> None:
        """Count one step, at network level `level` (1 is the coarsest), with the loss before it.

        Raises
        ------
        ComputationError
            If the loss is NaN or infinite.
        """
        self.done += 1
        if not math.isfinite(loss):
            raise ComputationError(f"The {self.label} diverged: its loss is {loss} at step {self.done}. {DIVERGED}")
        if self.bar is not None:
            self.bar.set_postfix_str(f"level {level}, loss {loss:.4f}")
            self.bar.update()
        now = time.monotonic()
        if self.lines and (self.done == self.total or now - self.reported > SECONDS_BETWEEN_LINES):
            self.reported = now
            left = (now - self.started) / self.done * (self.total - self.done)
            log.info(
                "%s: step %d of %d, level %d, loss %.4f, about %.0f s left at this pace",
                self.label, self.done, self.total, level, loss, left,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
