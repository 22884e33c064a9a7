"""A log line for every scan that is started, done or failed."""

from __future__ import annotations

import logging
from typing import Any

from nio_pydra.bids.inputs import scan_name
from nio_pydra.workflows.pydra_private import Job, TaskHooks

__all__ = ["subject_hooks"]

log = logging.getLogger("nio_pydra")


def subject_hooks() -> TaskHooks:
    """Return hooks for the `Subject` workflow. pydra runs them in the process that submitted it."""
    return TaskHooks(pre_run_task=_say_started, post_run_task=_say_failed, post_run=_say_done)


def _name(job: Job[Any]) -> str | None:
    """Return the name of the scan of a `Subject` job. None for the workflow around these jobs."""
    destination = getattr(job.task, "destination", None)
    return None if destination is None else scan_name(destination["entities"])


def _say_started(job: Job[Any]) -> None:
    if name := _name(job):
        log.info("%s: started", name)


def _say_failed(job: Job[Any], result: Any) -> None:
    if result.errored and (name := _name(job)):
        log.info("%s: failed", name)


def _say_done(job: Job[Any], result: Any) -> None:
    """Log that a scan is done: its result is stored, so that a run that continues this one does not repeat it."""
    if name := _name(job):
        log.info("%s: done", name)
