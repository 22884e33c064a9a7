"""How commands end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nio_pydra.errors import ComputationError, InputError, ProgramError
from nio_pydra.system.disk import full_disk

__all__ = ["exit_status", "heeded"]


class _Terminated(BaseException):
    """A signal arrived that ends everything, as an interrupt does; temporary folders go on the way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_status(program: str, action: Callable[[], int], folders: Sequence[Path] = ()) -> int:
    """Run a command; what the user can put right is said in one line on stderr.

    Parameters
    ----------
    program : str
        Named at the start of the line.
    action : callable
        Returns the exit status.
    folders : sequence of Path
        Where it writes; the one whose disk is full is named.

    Returns
    -------
    int
        What `action` returned, 1 after an error of `nio_pydra.errors` or of the system, 130 after an
        interrupt (SIGINT), 143 after SIGTERM and 129 after SIGHUP.
    """
    try:
        with _termination_raised():
            return action()
    except (ComputationError, InputError, ProgramError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        said = full_disk(folders, error)
        if said is None and isinstance(error, OSError) and error.strerror is not None:
            said = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}"
        if said is None:
            raise
        print(f"{program}: error: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except _Terminated as error:
        print(f"{program}: terminated", file=sys.stderr)
        return 128 + error.number


@contextmanager
def _termination_raised() -> Iterator[None]:
    """Turn SIGTERM, and SIGHUP of a terminal that is closed, into an exception, as Python does with SIGINT."""

    def stop(number: int, frame: object) -> None:
        raise _Terminated(number)

    with heeded((signal.SIGTERM, signal.SIGHUP), stop):
        yield


@contextmanager
def heeded(numbers: Sequence[int], handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle signals, except those that a script made this process ignore, as of what it runs in the background.

    Python lets only the main thread do so; in another one nothing is changed.
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
