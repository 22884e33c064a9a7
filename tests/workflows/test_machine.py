"""The machine under the commands: signals, several runs at once, full disks, settings of the environment."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.cli import bids_app, nio
from nio_pydra.cli.errors import exit_status
from nio_pydra.cli.run_log import begin_log
from nio_pydra.spatial.itk import read_h5

APP = "import sys; from nio_pydra.cli.bids_app import main; sys.exit(main(sys.argv[1:]))"
NIO = "import sys; from nio_pydra.cli.nio import main; sys.exit(main(sys.argv[1:]))"


def start(code: str, arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def ants_below(folder: Path) -> list[str]:
    """Return the ANTs processes that work in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_text().split("\0")
        except OSError:
            continue
        if "nio_pydra.engines.ants_process" in words and any(word.startswith(str(folder)) for word in words):
            found.append(" ".join(words))
    return found


def wait_for_ants(process: subprocess.Popen, folder: Path) -> None:
    until = time.monotonic() + 100
    while not ants_below(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def pair(dataset, out: Path) -> list[object]:
    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    return ["register", "--fixed", dataset.atlas, "--moving", scan, "--skull-stripped", "--engine", "affine", "--out",
            out]  # fmt: skip


needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads processes from /proc")


@needs_proc
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_a_registration_and_leaves_nothing(dataset, tmp_path, number, status, word):
    out, temporary = tmp_path / "pair", tmp_path / "tmp"
    temporary.mkdir()
    process = start(NIO, pair(dataset, out), env={**os.environ, "TMPDIR": str(temporary)})
    wait_for_ants(process, tmp_path)
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("", f"nio register: {word}\n")
    assert process.returncode == status
    assert not ants_below(tmp_path)
    assert not list(temporary.iterdir()) and not (out.exists() and list(out.iterdir()))


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGTERM, "1"), (signal.SIGTERM, "2"), (signal.SIGKILL, "1"), (signal.SIGKILL, "2")],
)
def test_a_killed_run_leaves_no_process_and_the_next_run_leaves_no_temporary_file(dataset, tmp_path, number, processes):
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    arguments = dataset.command(out, "--nprocs", processes)
    process = start(APP, arguments, env=environment, start_new_session=True)
    wait_for_ants(process, tmp_path)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    if number == signal.SIGTERM:
        assert process.returncode == 143 and not list(temporary.iterdir())
        assert said.strip() == "nio-pydra: terminated; the same command goes on from here"
    time.sleep(1)
    assert not ants_below(tmp_path)
    again = start(APP, arguments, env=environment)
    assert "2 of 2 scans done" in again.communicate(timeout=100)[0]
    assert not list(temporary.iterdir())
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith((".tmp-", ".nio-pydra-"))]


def test_sigterm_is_left_as_it_was_after_a_command():
    def raised() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert exit_status("nio", raised) == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_runs_started_at_the_same_time_with_one_output_and_work_folder_all_succeed(dataset, tmp_path):
    out = tmp_path / "out"
    labels = ("01", "01", "01", "02", "02")
    runs = [start(APP, dataset.command(out, "--participant-label", label, "--omp-nthreads", "1")) for label in labels]
    ends = [process.communicate(timeout=200) for process in runs]
    assert [process.returncode for process in runs] == [0] * len(runs), ends
    assert all("1 of 1 scan done" in printed for printed, _ in ends)
    assert len(list((out / "logs").glob("*.log"))) == len(runs)
    for label in ("01", "02"):
        files = list((out / f"sub-{label}/anat").iterdir())
        assert len(files) == 13
        assert all(nib.load(path).get_fdata().any() for path in files if path.name.endswith(".nii.gz"))


@pytest.mark.slow
def test_datasets_that_share_a_work_folder_get_their_own_scans(make_dataset, tmp_path):
    datasets = []
    for name, shift in (("a", 0.0), ("b", 9.0)):
        (tmp_path / name).mkdir()
        datasets.append(make_dataset(tmp_path / name))
        datasets[-1].add("sub-01", shift)
    runs = [
        start(APP, dataset.command(dataset.root.parent / "out", "-w", str(tmp_path / "work"), "--omp-nthreads", "1"))
        for dataset in datasets
    ]
    ends = [process.communicate(timeout=200) for process in runs]
    assert [process.returncode for process in runs] == [0, 0], ends
    moved = []
    for dataset in datasets:
        forward = dataset.root.parent / "out/sub-01/anat/sub-01_from-T1w_to-Tiny_mode-image_xfm.h5"
        moved.append(read_h5(forward).map_points(np.zeros((1, 3)))[0, 1])
    assert moved == pytest.approx([0.0, 9.0], abs=1.5)


def test_runs_of_the_same_second_have_a_log_each(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    for number in range(3):
        begin_log(tmp_path)
        logging.getLogger("nio_pydra").info("run %d", number)
    texts = sorted(path.read_text()[-2] for path in (tmp_path / "logs").iterdir())
    assert texts == ["0", "1", "2"]


@pytest.fixture
def small_disk(tmp_path):
    """Function that makes a command run with a disk of a given size at tmp_path/disk."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def command(size: str, *words: object) -> list[str]:
        script = 'mount --make-rprivate / && mount -t tmpfs -o size="$0" tmpfs "$1" && shift && "$@"'
        return ["unshare", "-m", "sh", "-c", script, size, str(folder), *map(str, words)]

    able = shutil.which("unshare") and subprocess.run(command("1m", "true"), capture_output=True).returncode == 0
    if not able:
        pytest.skip("mounting a small disk needs unshare and the right to use it")
    return command


@pytest.mark.parametrize("place", ["out", "work"])
def test_a_full_disk_is_named_with_its_folder(dataset, tmp_path, small_disk, place):
    out = Path("disk/out" if place == "out" else "out")  # relative: pydra changes the folder
    work = Path("disk/work" if place == "work" else "work")
    command = small_disk(
        "60k" if place == "out" else "800k", sys.executable, "-c", APP, *dataset.command(out), "-w", work
    )
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said
    assert re.search(
        rf": The disk with the folder {tmp_path / 'disk' / place}\S* is full: make room there, or", said
    ), said


@pytest.mark.parametrize("place", ["out", "tmp"])
def test_a_registration_names_the_full_disk_in_one_line(dataset, tmp_path, small_disk, place):
    environment = {**os.environ, "TMPDIR": str(tmp_path / "disk")} if place == "tmp" else os.environ
    out = tmp_path / ("disk/out" if place == "out" else "out")
    command = small_disk("80k", sys.executable, "-c", NIO, *pair(dataset, out))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if place == "tmp":  # large temporary files do not go there
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        sentence = rf"nio register: error: The disk with the folder {out}\S* is full: make room there, or .*\.\n"
        assert re.fullmatch(sentence, done.stderr)


@pytest.mark.parametrize(("value", "threads"), [("1", 1), ("2,1", 2), ("three", None), ("0", None), ("", None)])
def test_threads_of_the_environment_are_used(dataset, tmp_path, monkeypatch, value, threads):
    monkeypatch.setattr("nio_pydra.system.cores.core_count", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert nio.main([str(word) for word in pair(dataset, tmp_path / "pair")]) == 0
    assert json.loads((tmp_path / "pair/record.json").read_text())["threads"] == (threads or 3)


@pytest.mark.parametrize("seed", ["-1", str(2**31 - 1), "1.5"])
def test_a_seed_that_ants_would_not_take_is_refused(dataset, tmp_path, capsys, seed):
    arguments = [str(word) for word in pair(dataset, tmp_path / "pair")]
    for main, words in ((nio.main, arguments), (bids_app.main, dataset.command(tmp_path / "out"))):
        with pytest.raises(SystemExit):
            main([*words, "--random-seed", seed])
        assert f"{seed} is not a seed: expected a whole number from 0 to {2**31 - 2}" in capsys.readouterr().err


def unprivileged(*command: object) -> list[str]:
    """Return a command that runs as a user who can read all files and owns none."""
    return ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search", *map(str, command)]  # fmt: skip


@pytest.mark.slow
def test_everything_runs_where_neither_package_nor_home_can_be_written(make_dataset, request):
    """As in Singularity, or in Docker with another user: a user without a name or a home."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("becoming another user needs root and setpriv")
    if subprocess.run(unprivileged(sys.executable, "-c", "import numba"), capture_output=True).returncode:
        pytest.skip("another user cannot read this installation")
    base = Path(tempfile.mkdtemp())  # other users see nothing below pytest's own folders
    request.addfinalizer(lambda: shutil.rmtree(base))
    base.chmod(0o755)
    (base / "data").mkdir()
    dataset = make_dataset(base / "data", ["sub-01", "sub-02"])
    place, temporary = base / "place", base / "tmp"
    for folder in (place, temporary):
        folder.mkdir()
        folder.chmod(0o777)
    environment = {"HOME": "/nonexistent", "TMPDIR": str(temporary), "PATH": os.environ["PATH"]}
    environment |= {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}

    def run(*command: object) -> None:
        done = subprocess.run(unprivileged(*command), env=environment, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done

    from nio_pydra.networks import LapIRN, LapIRNConfig, save_network

    weights = base / "tiny.safetensors"
    tiny = LapIRN(LapIRNConfig(encoder_channels=4, channels=4, head_channels=(4, 4, 4)))
    save_network(tiny, weights, {"orientation": "LIA", "voxel_size_mm": 4.0, "intensity_scaling": "percentile",
                                 "lambda": 0.4})  # fmt: skip
    network = ["--engine", "nio_m", "--preset", "draft", "--weights", weights]
    run(sys.executable, "-c", "import nio_pydra.interfaces")
    run(sys.executable, "-c", NIO, *pair(dataset, "pair"), *network)
    run(sys.executable, "-c", APP, *dataset.command(Path("out")), "-w", "work", *network)
    (cache,) = temporary.glob("numba-nio_pydra-*")
    assert cache.stat().st_mode & 0o777 == 0o700 and list(cache.rglob("*.nbi"))
