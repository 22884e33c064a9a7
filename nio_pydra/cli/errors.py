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

__all__ = ["exit_status"]


class _Terminated(BaseException):
    """SIGTERM arrived; like an interrupt it ends everything, and temporary folders go on the way."""


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
        interrupt (SIGINT) and 143 after SIGTERM.
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
    except _Terminated:
        print(f"{program}: terminated", file=sys.stderr)
        return 128 + signal.SIGTERM


@contextmanager
def _termination_raised() -> Iterator[None]:
    """Turn SIGTERM into an exception, as Python does with SIGINT."""

    def stop(number: int, frame: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGTERM)
    if previous != signal.SIG_IGN:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
