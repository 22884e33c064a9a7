"""Steps of an optimisation, their progress (a bar on a terminal, log lines otherwise), and the end if it diverges."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor

from nio_pydra.errors import ComputationError

__all__ = ["Progress", "finite_field"]

SECONDS_BETWEEN_LINES = 20.0
ADVICE = "Compute in float32 (--precision float32). If that does not help, the weights or the images are damaged."
log = logging.getLogger("nio_pydra")


def finite_field(field: Tensor) -> Tensor:
    """Return a field, or raise `ComputationError` if it holds NaN or infinite numbers."""
    if not torch.isfinite(field).all():
        raise ComputationError(f"The registration diverged: its field holds NaN or infinite numbers. {ADVICE}")
    return field


class Progress:
    """Report of the steps of a registration.

    Parameters
    ----------
    total : int
        Number of steps.
    show : bool or None
        Whether to report. None: a bar if standard error is a terminal, log lines otherwise.
    """

    def __init__(self, total: int, show: bool | None = None) -> None:
        self.total = total
        self.done = 0
        self.started = self.reported = time.monotonic()
        self.bar = None
        if show is not False and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc="registration", unit="step", dynamic_ncols=True)
        self.lines = show is not False and self.bar is None

    def minimise(self, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, steps: int, *, level: int) -> None:
        """Take and report steps of an optimizer, at network level `level` (1 is the coarsest).

        Raises
        ------
        ComputationError
            If the loss becomes NaN or infinite.
        """
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            value = loss()
            self._report(level, value.item())
            value.backward()
            optimizer.step()

    def _report(self, level: int, loss: float) -> None:
        """Count one step, with the loss before it."""
        self.done += 1
        if not math.isfinite(loss):
            raise ComputationError(f"The registration diverged: its loss is {loss} at step {self.done}. {ADVICE}")
        if self.bar is not None:
            self.bar.set_postfix_str(f"level {level}, loss {loss:.4f}")
            self.bar.update()
        now = time.monotonic()
        if self.lines and (self.done == self.total or now - self.reported > SECONDS_BETWEEN_LINES):
            self.reported = now
            left = (now - self.started) / self.done * (self.total - self.done)
            log.info(
                "registration: step %d of %d, level %d, loss %.4f, about %.0f s left at this pace",
                self.done, self.total, level, loss, left,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
