"""How commands end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nio_pydra.errors import InputError, ProgramError

__all__ = ["exit_status"]


def exit_status(program: str, action: Callable[[], int]) -> int:
    """Run a command; what the user can put right is said in one line on stderr.

    Parameters
    ----------
    program : str
        Named at the start of the line.
    action : callable
        Returns the exit status.

    Returns
    -------
    int
        What `action` returned, 1 after an `InputError`, a `ProgramError` or an error of the system, 130 after an
        interrupt.
    """
    try:
        return action()
    except (InputError, ProgramError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.strerror is None:
            raise
        print(f"{program}: error: {f'{error.filename}: ' if error.filename else ''}{error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
