"""The machine underneath: files, temporary folders, disks that are full, other programs."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from nio_pydra.bids.outputs import _copy
from nio_pydra.errors import FullDiskError, InputError, ProgramError
from nio_pydra.spatial.images import save_image
from nio_pydra.spatial.itk import write_h5
from nio_pydra.spatial.transforms import Transform
from nio_pydra.system import disk, scratch
from nio_pydra.system.disk import full_disk
from nio_pydra.system.files import HOST, atomic_path, discard_leftovers, temporary_file
from nio_pydra.system.places import require_writable
from nio_pydra.system.processes import run_program
from nio_pydra.system.scratch import private_folder, scratch_folder


def start(code: str, *arguments: object) -> subprocess.Popen:
    """Start Python code that prints a line when it is where the test wants it, and wait for that line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    return process


def end(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.communicate()


def gone(pid: int, seconds: float = 2.0) -> bool:
    """Whether a process is gone, or is so in a moment; one that only its parent's wait is missing to counts."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644)])
def test_the_umask_decides_who_may_read_what_is_written(tmp_path, umask, mode):
    source = tmp_path / "source"
    source.write_text("x")
    source.chmod(0o640)
    out = tmp_path / "out"
    before = os.umask(umask)
    try:
        save_image(np.ones((2, 2, 2)), np.eye(4), out / "image.nii.gz")
        write_h5(Transform((np.eye(4),)), out / "affine.h5")
        _copy(source, out / "copy")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {mode}
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask
    assert (out / "copy").stat().st_mtime_ns == source.stat().st_mtime_ns


def test_half_written_files_of_the_dead_are_deleted_and_those_of_the_living_kept(tmp_path):
    code = """if True:
        import sys
        from nio_pydra.system.files import atomic_path
        with atomic_path(sys.argv[1]) as temporary:
            temporary.write_text("half")
            print("here", flush=True)
            sys.stdin.read()
    """
    writer = start(code, tmp_path / "out.txt")
    (half,) = tmp_path.iterdir()
    with atomic_path(tmp_path / "mine.txt") as mine:
        discard_leftovers(tmp_path)
        assert half.exists() and mine.exists()
        end(writer)
        discard_leftovers(tmp_path)
        assert not half.exists() and mine.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_writing_into_a_folder_deletes_what_was_left_there_and_nothing_else(tmp_path):
    """What another host made may be in use there: locks can be unknown here. After a day it is a leftover too."""
    names = {"dead": f".tmp-{HOST}-0123456789ab.nii.gz", "elsewhere": ".tmp-01234567-0123456789ab.h5",
             "old": ".tmp-01234567-ba9876543210", "notes": ".tmp-my-notes.txt"}  # fmt: skip
    for name in names.values():
        (tmp_path / name).touch()
    os.utime(tmp_path / names["old"], (0, 0))
    with atomic_path(tmp_path / "out.txt") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out.txt", names["elsewhere"], names["notes"]}


def test_many_may_see_at_once_whether_a_folder_can_be_written(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: require_writable(tmp_path / "out", "output folder"), range(400)))
    assert not list((tmp_path / "out").iterdir())


def test_a_temporary_folder_goes_at_its_end_or_when_its_process_was_killed(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        from nio_pydra.system.scratch import scratch_folder
        with scratch_folder(Path(sys.argv[1])) as folder:
            (folder / "brain").mkdir()
            (folder / "brain/image").write_text("x")
            print("here", flush=True)
            sys.stdin.read()
    """
    other = start(code, tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".nio-pydra-") and left.stat().st_mode & 0o777 == 0o700
    with scratch_folder(tmp_path):
        assert (left / "brain/image").exists()
    end(other)
    with scratch_folder(tmp_path) as folder:
        assert not left.exists()
        (folder / "file").touch()
    assert not list(tmp_path.iterdir())


def test_what_only_looks_like_a_temporary_folder_is_left_alone(tmp_path):
    kept = tmp_path / "precious"
    kept.mkdir()
    (kept / ".lock").touch()
    (tmp_path / f".nio-pydra-{HOST}-linklink").symlink_to(kept)
    unlocked, results = tmp_path / f".nio-pydra-{HOST}-unlocked", tmp_path / ".nio-pydra-results"
    unlocked.mkdir()
    (unlocked / "file").touch()
    results.mkdir()
    with scratch_folder(tmp_path):
        pass
    assert (kept / ".lock").exists() and (unlocked / "file").exists() and results.exists()


def test_a_temporary_folder_that_cannot_be_emptied_is_tried_again_by_the_next_run(tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", lambda *_, **__: None)
        with scratch_folder(tmp_path) as folder:
            (folder / "brain").mkdir()
    assert (folder / "brain").exists()
    with scratch_folder(tmp_path):
        assert not folder.exists()


def test_an_error_that_says_what_it_was_is_no_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("nio_pydra.system.disk._is_full", lambda folder: True)
    assert full_disk([tmp_path], PermissionError(errno.EACCES, "Permission denied", str(tmp_path))) is None
    assert str(tmp_path) in full_disk([tmp_path], OSError("12 requested and 0 written"))


def test_a_failure_leaves_no_folder_that_was_made_for_temporary_files(tmp_path):
    with pytest.raises(KeyError), scratch_folder(tmp_path / "new/deep"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"No temporary folder can be made in .*file"),
        scratch_folder(tmp_path / "file"),
    ):
        pass


def test_a_private_folder_that_others_may_read_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = private_folder("cache")
    assert first == private_folder("cache") and first.stat().st_mode & 0o777 == 0o700
    first.chmod(0o755)
    other = private_folder("cache")
    assert other != first and other.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError('Io(Os { code: 28, message: "No space left on device" })'),  # as safetensors says it
    ],
)
def test_an_error_that_tells_of_a_full_disk_becomes_a_sentence_with_the_folder(tmp_path, error):
    sentence = f"^The disk with the folder {tmp_path} is full: make room there, or choose another folder.$"
    with pytest.raises(FullDiskError, match=sentence), atomic_path(tmp_path / "out.txt"):
        raise error
    with pytest.raises(FullDiskError, match=sentence), scratch_folder(tmp_path):
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError("271633 requested and 255968 written"), RuntimeError("file write failed")])
def test_an_error_without_a_code_is_that_of_a_full_disk_where_no_room_is_left(tmp_path, monkeypatch, error):
    def fail():
        with temporary_file(tmp_path):
            raise error

    with pytest.raises(type(error)):
        fail()
    monkeypatch.setattr(disk, "LEAST_FREE_BYTES", 2**80)
    with pytest.raises(FullDiskError, match=f"folder {tmp_path} is full"):
        fail()


def test_the_advice_for_temporary_files_is_to_set_tmpdir(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(FullDiskError, match=f"{tmp_path} is full: make room there, or set TMPDIR"), scratch_folder():
        raise OSError(errno.ENOSPC, "")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("echo words; exit 3", r"prog ended with status 3\. The end of its output:\nwords$"),
        ("echo words; kill -11 $$", r"prog was killed by signal 11\. The end of its output:\nwords$"),
        ("kill -9 $$", r"prog was killed by signal 9 \(often: out of memory\).*\n\(it printed nothing\)$"),
    ],
)
def test_a_failing_program_is_told_with_the_end_of_its_output(tmp_path, program, message):
    with pytest.raises(ProgramError, match=message):
        run_program(["sh", "-c", program], name="prog", folder=tmp_path, log=tmp_path / "log")
    run_program(["sh", "-c", "pwd; echo $WORD"], name="prog", folder=tmp_path, log=tmp_path / "log",
                environment={**os.environ, "WORD": "told"})  # fmt: skip
    assert (tmp_path / "log").read_text().split() == [str(tmp_path.resolve()), "told"]
    with pytest.raises(ProgramError, match="no-such-program: No such file"):
        run_program(["no-such-program"], name="prog", folder=tmp_path, log=tmp_path / "log")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("victim", ["asker", "supervisor"])
def test_a_program_and_all_that_it_started_end_with_who_asked_for_it(tmp_path, number, victim):
    code = """if True:
        import sys
        from pathlib import Path
        from nio_pydra.system.processes import run_program
        print("here", flush=True)
        folder = Path(sys.argv[1])
        run_program(["sh", "-c", "sleep 1000 & echo $$ $! $PPID; wait"], name="p", folder=folder, log=folder / "log")
    """
    asker = start(code, tmp_path)
    until = time.monotonic() + 20
    while len(numbers := (tmp_path / "log").read_text().split() if (tmp_path / "log").exists() else []) < 3:
        assert time.monotonic() < until
        time.sleep(0.02)
    shell, sleep, supervisor = map(int, numbers)
    if victim == "asker":
        end(asker, number)
    else:
        os.kill(supervisor, number)
        asker.communicate(timeout=10)
    assert gone(shell) and gone(sleep) and gone(supervisor)


def test_processor_time_of_a_program_counts_as_that_of_a_child(tmp_path):
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    code = "import time\nwhile time.process_time() < 0.5: pass"
    run_program([sys.executable, "-c", code], name="p", folder=tmp_path, log=tmp_path / "log")
    assert spent() - before > 0.4


def test_the_folders_of_this_process_can_be_discarded_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch, "_mine", set())  # the fork server of other tests keeps its own
    with scratch_folder(tmp_path) as folder:
        (folder / "file").touch()
        scratch.discard_scratch()
        assert not folder.exists()


def test_a_forked_process_leaves_the_temporary_folders_of_its_parent(tmp_path):
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder(tmp_path))
        child = os.fork()
        if child == 0:
            stack.close()  # what Python does itself when nothing refers to the folder any more
            scratch.discard_scratch()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert folder.is_dir()
    assert not folder.exists()
