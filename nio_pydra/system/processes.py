"""Other programs, which never outlive the process that started them."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from multiprocessing import process as mp_process
from multiprocessing import resource_tracker, util
from multiprocessing.context import ForkServerContext
from pathlib import Path

from nio_pydra.errors import ProgramError
from nio_pydra.system.scratch import scratch_folder

__all__ = ["end_programs", "forkserver", "last_lines", "run_program"]

SUPERVISOR = Path(__file__).with_name("supervisor.py")
LOG_LINES = 15
LONGEST_PLACE = 60
_running: set[subprocess.Popen[bytes]] = set()


def run_program(
    arguments: Sequence[str | os.PathLike[str]],
    *,
    name: str,
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a program in a process group of its own, and wait for it.

    The program ends with this process, even if this one is killed: a supervisor sees to that. All that it started
    ends with it. Its processor time counts among the children of this process.

    Parameters
    ----------
    arguments : sequence of str or path
        The program, looked for on PATH, and its arguments.
    name : str
        What it is called in messages.
    folder : Path
        Its current folder.
    log : Path
        Takes all that it prints.
    environment : mapping of str to str, optional
        The whole of it; None: that of this process.

    Raises
    ------
    ProgramError
        If it fails or is killed.
    """
    # Isolated and without site-packages: it starts in a hundredth of a second, whatever the environment says.
    command = [sys.executable, "-I", "-S", str(SUPERVISOR), *(str(argument) for argument in arguments)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True,
            stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _running.add(process)
        try:
            status = process.wait()
        finally:
            _kill(process)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
            _running.discard(process)
    if status == 0:
        return
    cause = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    if status == -signal.SIGKILL:
        cause += " (often: out of memory)"
    raise ProgramError(f"{name} {cause}. The end of its output:\n{last_lines(log)}")


def end_programs() -> None:
    """Kill all programs that run: this process is about to end without any further step."""
    running = list(_running)
    for process in running:
        _kill(process)
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)  # what still writes would keep its folder from being deleted


@cache
def forkserver() -> ForkServerContext:
    """Return what starts processes by a fork server, as this process must not be forked once it has used torch.

    The sockets of multiprocessing lie in a temporary folder that is found to be left over if this process is killed.
    """
    before = os.environ.get("PYTHONWARNINGS")
    # After a kill the tracker cleans up, which is its task, and nothing to be warned about.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        os.environ.update({} if before is None else {"PYTHONWARNINGS": before})
    stack = ExitStack()
    # Names of sockets may have about a hundred characters.
    place = None if len(tempfile.gettempdir()) <= LONGEST_PLACE else Path("/tmp")
    folder = stack.enter_context(scratch_folder(place))
    util.Finalize(None, stack.close, exitpriority=-200)
    mp_process.current_process()._config["tempdir"] = str(folder)  # type: ignore[attr-defined]
    return mp.get_context("forkserver")


def last_lines(log: Path) -> str:
    """Return the end of what a program printed."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:]) or "(it printed nothing)"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the supervisor's group; the group is there as long as any process of it is."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of processes that have just ended
        os.killpg(process.pid, signal.SIGKILL)
