"""Workers, and cleaning up pydra's cache."""

import fcntl
import importlib.metadata
import logging
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import cloudpickle
import pydra.engine.submitter  # noqa: F401
import pytest
from fileformats.generic import File
from filelock import SoftFileLock
from pydra.compose import python
from pydra.engine.result import load_result
from pydra.engine.submitter import Submitter

from nio_pydra.tasks import inputs
from nio_pydra.tasks.inputs import code_version
from nio_pydra.workflows import cache, pydra_private
from nio_pydra.workflows.cache import discard_unfinished, failure_reason, in_use
from nio_pydra.workflows.workers import ForkserverWorker, SerialWorker


def squares(worker, cache, tasks, **arguments):
    with Submitter(worker=worker, cache_root=cache, **arguments) as submit:
        submit(type(tasks[0])().split(x=[task.x for task in tasks]), raise_errors=False)
    found = [load_result(task._checksum, [cache]) for task in tasks]
    return [None if result is None or result.errored else result.outputs.out for result in found]


@pytest.fixture
def failing():
    @python.define
    def Square(x: int) -> int:
        if x == 1:
            raise ValueError("one is bad")
        return x * x

    return Square


@pytest.mark.parametrize(("worker", "arguments"), [(SerialWorker, {}), (ForkserverWorker, {"n_procs": 2})])
def test_a_failing_task_leaves_the_others_done(tmp_path, failing, worker, arguments):
    assert squares(worker, tmp_path, [failing(x=x) for x in range(4)], **arguments) == [0, None, 4, 9]
    assert failure_reason(tmp_path, failing(x=1))[0] == "ValueError: one is bad"


def test_the_reason_of_a_failed_program_is_a_sentence_and_its_output_a_detail(tmp_path):
    @python.define
    def Square(x: int) -> int:
        from nio_pydra.errors import ProgramError

        raise ProgramError("ANTs was killed by signal 9. The end of its output:\nlast words")

    squares(SerialWorker, tmp_path, [Square(x=1)])
    reason, details = failure_reason(tmp_path, Square(x=1))
    assert reason == "ANTs was killed by signal 9." and "last words" in details


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_killed_process_fails_its_own_task_only(tmp_path, monkeypatch):
    monkeypatch.setattr("nio_pydra.workflows.cache.TORN_LOCK_SECONDS", 1.0)

    @python.define
    def Square(x: int) -> int:
        import os
        import signal
        from pathlib import Path

        if x == 1:
            # As if killed between creating a lock and writing into it, which now and then happens.
            Path(f"{Path.cwd()}_save.lock").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x * x

    with in_use(tmp_path, discard_locks=True):
        found = squares(ForkserverWorker, tmp_path / "pydra", [Square(x=x) for x in range(5)], n_procs=2)
    assert found == [0, None, 4, 9, 16]


def test_worker_processes_may_use_torch_after_their_parent_did(tmp_path):
    """The worker of pydra itself hangs here, because it forks."""
    import torch

    assert torch.get_num_threads() > 1  # a single one would survive the fork
    torch.rand(200, 200) @ torch.rand(200, 200)

    @python.define
    def Sum(x: int) -> float:
        import torch

        return float((torch.ones(200, 200) @ torch.ones(200, 200)).sum()) + x

    assert squares(ForkserverWorker, tmp_path, [Sum(x=0), Sum(x=1)], n_procs=2) == [8e6, 8e6 + 1]


def test_runs_started_together_after_a_kill_clean_up_together(tmp_path):
    """The first run deletes incomplete hashes, and the others accept that they are gone."""
    (tmp_path / "hashes").mkdir()
    for number in range(60):
        (tmp_path / f"hashes/{number}").touch()
    code = f"""if True:
        from pathlib import Path
        from nio_pydra.workflows.cache import in_use
        with in_use(Path({str(tmp_path)!r}), discard_locks=True):
            pass
    """
    runs = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(run.communicate(timeout=100)[1], run.returncode) for run in runs] == [("", 0)] * 3
    assert not list((tmp_path / "hashes").iterdir())


def test_results_of_failed_and_interrupted_jobs_are_discarded_and_good_ones_kept(tmp_path, failing):
    tasks = [failing(x=x) for x in range(3)]
    squares(SerialWorker, tmp_path, tasks)
    # What pydra leaves after an interrupt: no error, and no outputs either.
    stored = tmp_path / tasks[2]._checksum / "_result.pklz"
    result = cloudpickle.loads(stored.read_bytes())
    result.outputs = None
    stored.write_bytes(cloudpickle.dumps(result))
    damaged = tmp_path / "python-damaged"
    damaged.mkdir()
    (damaged / "_result.pklz").write_bytes(b"half")

    discard_unfinished(tmp_path)
    assert (tmp_path / tasks[0]._checksum).exists()
    assert not any((tmp_path / name).exists() for name in (tasks[1]._checksum, tasks[2]._checksum, damaged.name))


def test_a_result_that_was_found_usable_is_not_read_again_unless_it_or_its_files_change(tmp_path, monkeypatch):
    @python.define
    def Written(x: int) -> File:
        path = Path(f"{x}.txt").absolute()
        path.write_text(str(x))
        return path

    tasks = [Written(x=x) for x in range(3)]
    squares(SerialWorker, tmp_path, tasks)
    discard_unfinished(tmp_path)
    read, found = [], cache.result_files
    monkeypatch.setattr(cache, "result_files", lambda stored: read.append(stored.parent.name) or found(stored))
    discard_unfinished(tmp_path)
    assert not read
    folders = [tmp_path / task._checksum for task in tasks]
    (folders[0] / "0.txt").write_text("changed")
    (folders[1] / "_result.pklz").write_bytes(b"half")
    (tmp_path / "a_job_that_failed").mkdir()
    discard_unfinished(tmp_path)
    assert [folder.exists() for folder in folders] == [False, False, True]
    assert set(read) == {folder.name for folder in folders[:2]}
    (tmp_path / cache.INDEX).write_text("half")
    discard_unfinished(tmp_path)
    assert folders[2].exists() and read[-1] == folders[2].name


def test_results_that_another_run_computes_or_may_still_read_are_not_discarded(tmp_path, failing):
    task = failing(x=1)
    squares(SerialWorker, tmp_path, [task])
    folder = tmp_path / task._checksum
    with SoftFileLock(folder.with_suffix(".lock")):
        discard_unfinished(tmp_path)
    assert folder.exists()
    discard_unfinished(tmp_path, alone=False)
    assert folder.exists()
    os.utime(folder / "_result.pklz", (0, 0))
    discard_unfinished(tmp_path, alone=False)
    assert not folder.exists()


@pytest.mark.parametrize("worker", [SerialWorker, ForkserverWorker])
def test_locks_of_jobs_that_another_run_computes_are_kept(tmp_path, worker):
    """The debug worker of pydra deletes every lock that is older than its own run."""
    assert not Submitter(worker=worker, cache_root=tmp_path).clean_stale_locks
    assert Submitter(worker="debug", cache_root=tmp_path).clean_stale_locks


def test_hashes_that_were_not_written_whole_are_discarded(tmp_path):
    folder = tmp_path / "hashes"
    folder.mkdir()
    for name, size in (("whole", 16), ("empty", 0), ("half", 7), ("held", 0)):
        (folder / name).write_bytes(b"x" * size)
    with SoftFileLock(folder / "held.lock"), in_use(tmp_path, discard_locks=False):
        assert {path.name for path in folder.iterdir()} == {"whole", "held", "held.lock"}


@pytest.mark.parametrize("second", ["alone", "beside"])
def test_a_run_can_tell_whether_it_is_alone_in_a_work_folder(tmp_path, second):
    with in_use(tmp_path, discard_locks=True) as first_alone:
        assert first_alone
        if second == "beside":
            with in_use(tmp_path, discard_locks=True) as alone:
                assert not alone
    with in_use(tmp_path, discard_locks=True) as alone:
        assert alone


@pytest.mark.parametrize(("worker", "arguments"), [(SerialWorker, {}), (ForkserverWorker, {"n_procs": 2})])
def test_the_current_folder_is_the_same_afterwards(tmp_path, monkeypatch, failing, worker, arguments):
    monkeypatch.chdir(tmp_path)
    with in_use(tmp_path, discard_locks=True):
        squares(worker, tmp_path / "pydra", [failing(x=x) for x in range(3)], **arguments)
    assert Path.cwd() == tmp_path


def test_locks_of_dead_runs_are_discarded_and_those_of_live_ones_kept(tmp_path):
    locks = [tmp_path / "pydra/python-1.lock", tmp_path / "hashes/2.lock"]

    def lock():
        for path in locks:
            path.parent.mkdir(exist_ok=True)
            path.touch()  # empty, as after a kill between creating and writing it: filelock waits for ever

    lock()
    with in_use(tmp_path, discard_locks=True):
        assert not any(path.exists() for path in locks)
        lock()
        with in_use(tmp_path, discard_locks=True):
            assert all(path.exists() for path in locks)
    with in_use(tmp_path, discard_locks=False):
        assert all(path.exists() for path in locks)
    with in_use(tmp_path, discard_locks=True):
        assert not any(path.exists() for path in locks)


@pytest.mark.parametrize(
    ("host", "holds", "busy", "kept"),
    [
        ("dead-node", False, set(), False),
        ("living-node", True, set(), True),
        ("busy-node.cluster", False, {"busy-node"}, True),  # its file system may not show locks of other hosts
        ("unknown-node", None, set(), True),  # it used the folder before hosts were noted
    ],
)
def test_beside_other_runs_locks_of_hosts_without_a_living_process_are_discarded(
    tmp_path, monkeypatch, host, holds, busy, kept
):
    monkeypatch.setattr("nio_pydra.workflows.cache.busy_hosts", lambda: busy)
    lock = tmp_path / "pydra/python-1.lock"
    lock.parent.mkdir()
    with in_use(tmp_path, discard_locks=True), ExitStack() as stack:
        if holds is not None:
            marker = stack.enter_context((tmp_path / "hosts" / host).open("w"))
            if holds:
                fcntl.flock(marker, fcntl.LOCK_SH)
        lock.write_text(f"4711\n{host}\n123\n")
        own = SoftFileLock(tmp_path / "pydra/python-own.lock")
        with own, in_use(tmp_path, discard_locks=True) as alone:
            assert not alone
            assert lock.exists() is kept and Path(own.lock_file).exists()


def test_an_untested_version_of_pydra_gives_a_warning_of_one_sentence(monkeypatch, caplog):
    logging.getLogger("nio_pydra").propagate = True  # the app's own handlers may have taken over
    installed = importlib.metadata.version("pydra")
    monkeypatch.setattr(pydra_private, "TRIED", ("0.9", installed))
    pydra_private.warn_if_untried()
    assert not caplog.records
    monkeypatch.setattr(pydra_private, "TRIED", ("0.8", "0.9"))
    pydra_private.warn_if_untried()
    (said,) = {record.getMessage() for record in caplog.records}
    assert f"pydra {installed} is installed, but nio_pydra was tested with 0.8, 0.9 only" in said
    assert "run pip install pydra==0.9" in said


def test_task_cache_follows_content_and_version_and_not_names(tmp_path, monkeypatch):
    from nio_pydra.tasks import Prepare

    for name, content in (("a.nii", "x"), ("b.nii", "x"), ("c.nii", "y")):
        (tmp_path / name).write_text(content)

    def key(name, version="1"):
        return Prepare(image=tmp_path / name, skull_stripped=True, version=version)._checksum

    assert key("a.nii") == key("b.nii")
    assert key("a.nii") != key("c.nii")
    assert key("a.nii") != key("a.nii", "2")

    def by_default():
        task = Prepare(image=tmp_path / "a.nii", skull_stripped=True)
        assert task.version == code_version()
        return task._checksum

    keys = [by_default()]
    monkeypatch.setattr(inputs, "source_digest", lambda: "another state")
    keys.append(by_default())
    monkeypatch.setattr(inputs, "version", lambda program: "another version")
    keys.append(by_default())
    assert len(set(keys)) == 3


def test_affines_of_other_code_are_not_used_by_an_adaptation(tmp_path, monkeypatch):
    from nio_pydra.workflows.align import Align

    for name in ("scan.nii", "atlas.nii", "mask.nii"):
        (tmp_path / name).write_text(name)

    def key():
        files = {"scan": tmp_path / "scan.nii", "atlas": tmp_path / "atlas.nii", "atlas_mask": tmp_path / "mask.nii"}
        return Align(**files)._checksum

    before = key()
    assert key() == before
    monkeypatch.setattr(inputs, "source_digest", lambda: "another state")
    assert key() != before
