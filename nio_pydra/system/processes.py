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

__all__ = ["end_programs", "forkserver", "last_lines", "run_program", "run_python"]

SUPERVISOR = Path(__file__).with_name("supervisor.py")
LOG_LINES = 15
LONGEST_FOLDER = 60  # characters; the name of a socket can have about a hundred
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

    A supervisor ends the program and everything that it started when this process ends, even if it is killed. The
    program's processor time counts among the children of this process.

    Parameters
    ----------
    arguments : sequence of str or path
        Program, looked for on PATH, and its arguments.
    name : str
        Name of the program in messages.
    folder : Path
        Current folder of the program.
    log : Path
        File for the output of the program.
    environment : mapping of str to str, optional
        All environment variables of the program. None: those of this process.

    Raises
    ------
    ProgramError
        If the program fails or is killed.
    """
    # Isolated and without site-packages, the supervisor starts in a hundredth of a second.
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
    """Kill all running programs, for a process that is about to end without other cleaning up."""
    running = list(_running)
    for process in running:
        _kill(process)
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)  # the folder of a program that still writes could not be deleted


@cache
def forkserver() -> ForkServerContext:
    """Return multiprocessing's fork server, because a process that has used torch must not be forked.

    The sockets of multiprocessing lie in a temporary folder, which a later run deletes if this process is killed.
    """
    before = os.environ.get("PYTHONWARNINGS")
    # The tracker would warn when it cleans up after a kill, which is its task.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ.pop("PYTHONWARNINGS")
        os.environ.update({} if before is None else {"PYTHONWARNINGS": before})
    stack = ExitStack()
    parent = None if len(tempfile.gettempdir()) <= LONGEST_FOLDER else Path("/tmp")
    folder = stack.enter_context(scratch_folder(parent))
    util.Finalize(None, stack.close, exitpriority=-200)
    mp_process.current_process()._config["tempdir"] = str(folder)  # type: ignore[attr-defined]
    return mp.get_context("forkserver")


def run_python(
    arguments: Sequence[str | os.PathLike[str]],
    answer: Path,
    *,
    name: str,
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run Python by :func:`run_program`, so that it finds this package where this process did, installed or not.

    Parameters
    ----------
    arguments : sequence of str or path
        Arguments of Python.
    answer : Path
        File that the program must write.
    name, folder, log
        As of :func:`run_program`.
    environment : mapping of str to str, optional
        Variables that differ from those of this process.

    Raises
    ------
    ProgramError
        If the program fails, is killed, or leaves no answer.
    """
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    variables = os.environ | {"PYTHONPATH": path} | dict(environment or {})
    run_program([sys.executable, *arguments], name=name, folder=folder, log=log, environment=variables)
    if not answer.exists():
        raise ProgramError(f"{name} left no result. The end of its output:\n{last_lines(log)}")


def last_lines(log: Path) -> str:
    """Return the last lines that a program printed."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:]) or "(it printed nothing)"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the supervisor's process group, which exists as long as any of its processes."""
    with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for processes that have just ended
        os.killpg(process.pid, signal.SIGKILL)
