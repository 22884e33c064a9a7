"""How commands end: exit status, error messages, signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from nio_pydra.errors import ComputationError, InputError, ProgramError
from nio_pydra.system.disk import full_disk
from nio_pydra.system.processes import end_programs
from nio_pydra.system.scratch import discard_scratch
from nio_pydra.system.slurm import cancel_submitted

__all__ = ["ended_by_signals", "exit_status", "signals_handled"]


class _Terminated(BaseException):
    """A signal that ends the command. As an exception it lets temporary folders be deleted."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_status(program: str, action: Callable[[], int], folders: Sequence[Path] = ()) -> int:
    """Run a command. An error that the user can correct is one line on stderr.

    Parameters
    ----------
    program : str
        Name of the command, at the start of that line.
    action : callable
        Function that runs the command and returns the exit status.
    folders : sequence of Path
        Folders that it writes to. One that it made is deleted if it is empty in the end, as after a refusal. The
        message about a full disk names one of them.

    Returns
    -------
    int
        Status that `action` returned. 1 after an error of `nio_pydra.errors` or of the system, 130 after an interrupt
        (SIGINT), 143 after SIGTERM, 129 after SIGHUP.
    """
    try:
        with _empty_folders_deleted(folders), _termination_raised():
            return action()
    except (ComputationError, InputError, ProgramError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        message = full_disk(folders, error)
        if message is None and isinstance(error, OSError) and error.strerror is not None:
            message = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}"
        if message is None:
            raise
        print(f"{program}: error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except _Terminated as error:
        print(f"{program}: terminated", file=sys.stderr)
        return 128 + error.number


@contextmanager
def _empty_folders_deleted(folders: Sequence[Path]) -> Iterator[None]:
    """Delete folders that are made meanwhile, if they are empty."""
    absent = [folder for folder in folders if not folder.exists()]
    try:
        yield
    finally:
        for folder in absent:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


@contextmanager
def _termination_raised() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, as Python does with SIGINT. A closed terminal sends SIGHUP."""

    def stop(number: int, frame: object) -> None:
        raise _Terminated(number)

    with signals_handled((signal.SIGTERM, signal.SIGHUP), stop):
        yield


@contextmanager
def ended_by_signals(program: str) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process at once.

    With an exception, pydra would store the running jobs as finished, and wait for them. Nothing is lost by ending at
    once: files are whole or absent, worker processes and their programs end with their parent, and the next run goes
    on from the last finished task.
    """

    def stop(number: int, frame: object) -> None:
        cancel_submitted()
        end_programs()
        discard_scratch()
        reason = "interrupted" if number == signal.SIGINT else "terminated"
        print(f"\n{program}: {reason}; the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(128 + number)

    with signals_handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), stop):
        yield


@contextmanager
def signals_handled(numbers: Sequence[int], handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle signals, except those that this process was started to ignore, as in the background of a script.

    Python allows this in the main thread only. In another thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in numbers}
    for number, before in previous.items():
        if before != signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
