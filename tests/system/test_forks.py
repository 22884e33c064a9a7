"""Functions that run in a process of their own."""

import multiprocessing as mp
import os
import sys
import traceback
from pathlib import Path

import pytest

from nio_pydra.engines.registration import propagate_labels
from nio_pydra.errors import InputError, ProgramError
from nio_pydra.system.forks import fork_safe, in_own_process


@fork_safe
def whereabouts(place: str) -> tuple[int, str]:
    return os.getpid(), str(Path(place).resolve())


def call_in_fork(connection) -> None:
    connection.send((os.getpid(), whereabouts(".")))


def ask_in(context: str):
    ours, theirs = mp.Pipe()
    process = mp.get_context(context).Process(target=call_in_fork, args=(theirs,))
    process.start()
    try:
        assert ours.poll(120), "no answer"
        return ours.recv()
    finally:
        process.join()


@pytest.mark.parametrize(("loaded", "moves"), [(True, True), (False, False)])
def test_a_function_moves_to_a_process_of_its_own_only_if_forked_from_one_with_torch(monkeypatch, loaded, moves):
    for name in ("torch", "numba"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", sys)
    process, (worked_in, place) = ask_in("fork")
    assert (worked_in != process) is moves
    assert place == str(Path.cwd())


def test_a_process_that_was_not_forked_computes_itself():
    assert whereabouts(".")[0] == os.getpid()


def test_an_own_process_returns_the_error_that_was_raised_there(tmp_path):
    with pytest.raises(InputError, match=r"a\.nii \(labels\): no such file") as raised:
        in_own_process(propagate_labels, *(tmp_path / name for name in ("a.nii", "b.nii", "c.h5", "d.nii")))

    assert "Traceback" not in "".join(traceback.format_exception(raised.value)[1:])


def test_an_own_process_that_is_killed_is_reported_with_its_last_words(capfd):
    with pytest.raises(ProgramError, match=r"(?s)The process of system was killed by signal 9.*last words"):
        in_own_process(os.system, "echo last words; kill -9 $PPID")
    assert "last words" in capfd.readouterr().err


def test_an_own_process_that_ends_itself_is_reported():
    with pytest.raises(ProgramError, match="The process of exit left no result"):
        in_own_process(sys.exit, 0)
