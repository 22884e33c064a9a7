"""Functions that run in a process of their own: always, or where this process must not compute.

A process that was forked after its parent used torch or numba inherits locks of threads that it does not have. Its own
first use of them hangs or ends the process. Nipype's MultiProc plugin, pydra's `cf` worker and Python's own pools of
processes fork on Linux (before Python 3.14). A process that was started anew does not have this problem.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

__all__ = ["fork_safe", "in_own_process"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

THREADED = ("torch", "numba")
"""Packages whose threads do not survive a fork."""
_forked = False


def fork_safe(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a function run in a process of its own where this process was forked after torch or numba were loaded.

    Parameters
    ----------
    function : callable
        Function of a module, for :func:`in_own_process`.
    """

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if _forked:
            return in_own_process(call, *args, **kwargs)
        return function(*args, **kwargs)

    return call


def in_own_process(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Call a function in a new process, which ends with this one, and return its result or raise its error.

    What the function prints and logs appears on stderr when it is done.

    Parameters
    ----------
    function : callable
        Function that the new process can import. Its arguments, result and errors must be picklable.
    *args, **kwargs
        Its arguments.

    Raises
    ------
    ProgramError
        If the process is killed, or ends without an answer.
    """
    from nio_pydra.errors import ComputationError, InputError, ProgramError
    from nio_pydra.system.processes import run_python
    from nio_pydra.system.scratch import scratch_folder

    name = f"The process of {function.__name__}"
    with scratch_folder() as folder:
        request, answer, log = (folder / part for part in ("request", "answer", "log.txt"))
        request.write_bytes(pickle.dumps((Path.cwd(), logging.getLogger("nio_pydra").getEffectiveLevel())))
        (folder / "call").write_bytes(pickle.dumps((function, args, kwargs)))
        arguments = ["-c", f"from {__name__} import _answer; _answer()", str(folder)]
        try:
            run_python(arguments, answer, name=name, folder=folder, log=log)
        finally:
            sys.stderr.write(log.read_text(errors="replace") if log.exists() else "")
        result, error, details = pickle.loads(answer.read_bytes())
    if isinstance(error, (ComputationError, InputError, ProgramError)):
        raise error from None  # it says what is wrong: a traceback would hide that
    if error is not None:
        raise error from ProgramError(f"{name} failed:\n{details}")
    return result


def _answer() -> None:
    """Make the call that the folder on the command line holds, and store its result or its error there."""
    folder = Path(sys.argv[1])
    place, level = pickle.loads((folder / "request").read_bytes())
    os.chdir(place)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("nio_pydra").setLevel(level)
    result, error, details = None, None, ""
    try:
        function, args, kwargs = pickle.loads((folder / "call").read_bytes())
        result = function(*args, **kwargs)
    except Exception as raised:
        error, details = raised, traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # some errors of other packages can be stored but not read
            error = RuntimeError(f"{type(raised).__name__}: {raised}")
    (folder / "answer").write_bytes(pickle.dumps((result, error, details)))


def _note_fork() -> None:
    """Note in a forked process whether it must not compute."""
    global _forked
    _forked = _forked or any(package in sys.modules for package in THREADED)


os.register_at_fork(after_in_child=_note_fork)
if type(mp.current_process()).__name__ == "ForkProcess":  # forked before this package was imported
    _note_fork()
