"""Pydra workers that let all other subjects finish when one fails."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import multiprocessing as mp
import os
import signal
import threading
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import cloudpickle

from nio_pydra.system.disk import full_disk_named
from nio_pydra.system.processes import forkserver
from nio_pydra.workflows import pydra_private
from nio_pydra.workflows.pydra_private import Job, cache_root, in_split

__all__ = ["ForkserverWorker", "SerialWorker"]


class SerialWorker(pydra_private.Worker):
    """Runs one task after another in this process, one subject after another.

    pydra's `debug` worker stops at the first task that fails, and deletes the locks of jobs that other runs compute.
    pydra treats this one like its parallel workers, because it is asynchronous in form and has another name.

    Parameters
    ----------
    n_procs : int
        Number of subjects at a time. Without a limit, pydra runs the first task of every subject before the second
        task of any subject. A run that is killed half-way would then have finished no subject.
    """

    _plugin_name = "serial"

    def __init__(self, n_procs: int = 1) -> None:
        super().__init__()
        self.n_procs = n_procs
        self._subjects = asyncio.Semaphore(n_procs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the semaphore and the pool, which belong to this process."""
        return {"n_procs": self.n_procs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make them anew."""
        self.__init__(**state)  # type: ignore[misc]

    async def submit(self, job: Job[Any], rerun: bool = False) -> Any:
        """Run a job. An element of a split waits for its turn."""
        with full_disk_named(cache_root(job)):
            if in_split(job):
                async with self._subjects:
                    return await super().submit(job, rerun)
            return await super().submit(job, rerun)

    async def run(self, job: Job[Any], rerun: bool = False) -> Any:
        """Run a task in this process."""
        return _run(job, rerun)


class ForkserverWorker(SerialWorker):
    """Runs tasks in `n_procs` processes started by a fork server.

    pydra's `cf` worker forks this process. Torch hangs in a forked process if the parent has used it before.

    A process that dies, mostly for lack of memory, ends the whole pool. The tasks of the pool are then run once more,
    one at a time, each in a process of its own. So only the task that cannot be run fails.
    """

    _plugin_name = "cf"

    def __init__(self, n_procs: int = 1) -> None:
        super().__init__(n_procs)
        # Made on first use: workers are pickled with their tasks, and a task must not start a pool.
        self._pool: cf.ProcessPoolExecutor | None = None
        self._alone = asyncio.Lock()

    async def run(self, job: Job[Any], rerun: bool = False) -> Any:
        """Run a task in the pool."""
        pool = self._pool = self._pool or _new_pool(self.n_procs)
        try:
            return await _run_in(pool, job, rerun)
        except cf.BrokenExecutor:
            if self._pool is pool:
                self._pool = None
        async with self._alone:
            with _new_pool(1) as own:
                try:
                    return await _run_in(own, job, rerun)
                except cf.BrokenExecutor:
                    raise RuntimeError(
                        f"the process of the task {job.name} was killed, probably for lack of memory: "
                        "lower --nprocs, or use a machine with more memory"
                    ) from None

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


async def _run_in(pool: cf.ProcessPoolExecutor, job: Job[Any], rerun: bool) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, _run_pickled, cloudpickle.dumps(job), rerun)


def _run_pickled(job: bytes, rerun: bool) -> Any:
    return _run(cloudpickle.loads(job), rerun)


def _run(job: Job[Any], rerun: bool) -> Any:
    """Run a job, then return to the current folder: pydra stays in the job's folder if it cannot store the result."""
    folder = Path.cwd()
    try:
        with full_disk_named(cache_root(job)):
            return job.run(rerun=rerun)
    finally:
        os.chdir(folder)


def _new_pool(n_procs: int) -> cf.ProcessPoolExecutor:
    return cf.ProcessPoolExecutor(n_procs, mp_context=forkserver(), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Make a worker process ignore interrupts, which its parent handles, and end when its parent ends.

    Otherwise the processes of a killed run would go on, or wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = mp.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
