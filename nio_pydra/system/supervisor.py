"""Script that runs one program, and ends it as soon as the process that asked for it has ended.

:mod:`nio_pydra.system.processes` starts it as a script without any package, so that it starts quickly. It leads a
process group that holds the program and everything that the program starts. Its standard input is a pipe that nobody
writes to. The pipe closes when the process at the other end ends in any way, and then the group is killed.
"""

import os
import signal
import sys
import threading


def main(program: list[str]) -> int:
    """Run a program; return its exit status, or end by the signal that ended the program."""
    die_with_parent = _death_signal()
    child = os.fork()
    if child == 0:
        die_with_parent()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            os.execvp(program[0], program)
        except OSError as error:
            print(f"{program[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end_group)
    threading.Thread(target=_wait_for_asker, daemon=True).start()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)  # processes that the program left running
    if code < 0:
        _end_by(-code)
    return code


def _wait_for_asker() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _end_group(number: int, frame: object) -> None:
    os.killpg(0, signal.SIGKILL)


def _end_by(number: int) -> None:
    """End by the program's signal, so that the asker sees it, but without another core dump."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _death_signal():  # type: ignore[no-untyped-def]
    """Return a function that makes Linux kill the calling process with the supervisor; elsewhere it does nothing."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
