"""A log line for every scan that is started, done or failed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from nio_pydra.bids.inputs import scan_name
from nio_pydra.workflows.pydra_private import Job, TaskHooks

__all__ = ["subject_hooks"]

log = logging.getLogger("nio_pydra")


def subject_hooks(several_atlases: bool, store_failure: Callable[[Any], str]) -> TaskHooks:
    """Return hooks for the `Subject` workflow. pydra runs them in the process that submitted it.

    Parameters
    ----------
    several_atlases : bool
        Whether lines name the atlas as well.
    store_failure : callable
        Stores that a `Subject` task has failed, and returns the reason. pydra pickles it with every job.
    """

    def name(job: Job[Any]) -> str | None:
        """Return the name of the scan of a `Subject` job. None for the workflow around these jobs."""
        destination = getattr(job.task, "destination", None)
        if destination is None:
            return None
        scan = scan_name(destination["entities"])
        return f"{scan} to {destination['atlas']}" if several_atlases else scan

    def say_started(job: Job[Any]) -> None:
        if found := name(job):
            log.info("%s: started", found)

    def say_failed(job: Job[Any], result: Any) -> None:
        if result.errored and (found := name(job)):
            log.info("%s: failed: %s", found, store_failure(job.task))

    def say_done(job: Job[Any], result: Any) -> None:
        """Log that a scan is done: its result is stored, so that a run that continues this one does not repeat it."""
        if found := name(job):
            log.info("%s: done", found)

    return TaskHooks(pre_run_task=say_started, post_run_task=say_failed, post_run=say_done)
