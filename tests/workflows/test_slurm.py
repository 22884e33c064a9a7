"""SLURM jobs, with replacements of SLURM's commands. `benchmarks/slurm.py` tries a real SLURM."""

import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from filelock import SoftFileLock

from nio_pydra.cli import bids_app
from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.methods import choose_method
from nio_pydra.errors import InputError
from nio_pydra.system import slurm as commands
from nio_pydra.workflows import slurm, slurm_jobs
from nio_pydra.workflows.slurm import Scans, live_jobs, run_scans
from nio_pydra.workflows.slurm_jobs import Resources, resources_of, run_scan
from nio_pydra.workflows.work_folder import clean_work_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")

SBATCH = """#!/bin/sh
echo sbatch "$@" >> HERE/calls
if [ -f HERE/refusal ]; then cat HERE/refusal >&2; exit 1; fi
number=$(($(cat HERE/number) + 1)); echo $number > HERE/number
for word in "$@"; do
  case "$word" in
    --array=0-*) last=${word#--array=0-}; last=${last%%%*};;
    --output=*) log=${word#--output=};;
  esac
  script=$word
done
cp "$script" HERE/script
task=0
while [ $task -le $last ]; do
  state=$(cat HERE/state_$task 2>/dev/null || cat HERE/state)
  if [ "$state" = RUN ]; then
    export SLURM_ARRAY_JOB_ID=$number SLURM_ARRAY_TASK_ID=$task SLURM_CPUS_PER_TASK=1
    sh "$script" > "$(echo "$log" | sed "s/%A/$number/; s/%a/$task/")" 2>&1 && state=COMPLETED || state=FAILED
  fi
  echo "${number}_$task|$state|4G|30:00|Priority" >> HERE/queue
  task=$((task + 1))
done
echo $number
"""
SQUEUE = """#!/bin/sh
echo squeue "$@" >> HERE/calls
if rm HERE/silent 2>/dev/null; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
cat HERE/queue
"""
SACCT = """#!/bin/sh
echo sacct "$@" >> HERE/calls
[ ! -f HERE/accounts ] || cat HERE/accounts
"""
SCANCEL = """#!/bin/sh
echo scancel "$@" >> HERE/calls
sed -i -e 's/|RUNNING|/|CANCELLED|/' -e 's/|PENDING|/|CANCELLED|/' HERE/queue
"""
SCONTROL = """#!/bin/sh
[ "$2" != show ] || cat HERE/job 2>/dev/null
echo "MaxArraySize            = $(cat HERE/largest)"
"""


@dataclass
class FakeSlurm:
    """What the replaced commands read and write: the state that jobs get, the queue, and the calls."""

    folder: Path

    def set(self, name: str, text: object) -> None:
        (self.folder / name).write_text(f"{text}\n")

    def calls(self, command: str) -> list[str]:
        return [line for line in (self.folder / "calls").read_text().splitlines() if line.startswith(command)]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    folder = tmp_path / "fake"
    folder.mkdir()
    scripts = {"sbatch": SBATCH, "squeue": SQUEUE, "sacct": SACCT, "scancel": SCANCEL, "scontrol": SCONTROL}
    for name, text in scripts.items():
        (folder / name).write_text(text.replace("HERE", str(folder)))
        (folder / name).chmod(0o755)
    found = FakeSlurm(folder)
    for name, text in (("calls", ""), ("queue", ""), ("number", 100), ("largest", 1001), ("state", "COMPLETED")):
        found.set(name, text)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(slurm, "SHORTEST_WAIT", 0.01)
    monkeypatch.setattr(slurm, "LONGEST_WAIT", 0.01)
    monkeypatch.setattr(slurm, "SLOW_FILES_SECONDS", 0.0)
    return found


def pause_by(monkeypatch, sleep):
    """Let the waiting between two questions do something. Other modules sleep as ever."""
    monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=sleep, strftime=time.strftime, monotonic=time.monotonic))


FEW = Resources(2, 4096, 30)


def scans(count=2, done=()):
    """Return scans of which those named have results."""
    names = [f"sub-{number:02d}" for number in range(1, count + 1)]
    return Scans({name: {"scan": name} for name in names}, lambda inputs: inputs["scan"] in done)


def test_all_scans_are_one_array_that_asks_for_what_is_needed_and_is_never_requeued(fake, tmp_path):
    done = ("sub-01", "sub-02")
    assert run_scans(scans(2, done), tmp_path, FEW, options="--partition=short -A 'my lab'", at_a_time=3) == {}
    (call,) = fake.calls("sbatch")
    assert "--array=0-1%3" in call and re.search(r"--output=\S+ --partition=short -A my lab /\S+job.sh$", call)
    script = (fake.folder / "script").read_text()
    for directive in ("--cpus-per-task=2", "--mem=4096M", "--time=30", "--no-requeue", "--ntasks=1"):
        assert f"\n#SBATCH {directive}\n" in script
    assert "gpu" not in script
    assert "\nexport OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-2}\n" in script
    assert not list(tmp_path.glob("slurm/*"))  # nothing is left of a run without failures


def test_a_number_of_threads_and_a_gpu_that_were_asked_for_stand_in_the_script(fake, tmp_path):
    run_scans(scans(1, ("sub-01",)), tmp_path, Resources(3, 4096, 30, gpus=1, threads=3))
    script = (fake.folder / "script").read_text()
    assert "#SBATCH --gres=gpu:1\n" in script and "export OMP_NUM_THREADS=3\n" in script
    # sbatch refuses two kinds of memory.
    run_scans(scans(1, ("sub-01",)), tmp_path, Resources(3, 4096, 30, gpus=1), options="--mem-per-cpu=2G --gpus=a100:1")
    script = (fake.folder / "script").read_text()
    assert "--mem=" not in script and "gpu" not in script and "--time=30" in script


@pytest.mark.parametrize(
    ("state", "said", "killed"),
    [
        ("OUT_OF_MEMORY", r"SLURM job 101_1 ran out of memory \(4G\): give more by --slurm-args='--mem=...'", True),
        ("TIMEOUT", r"SLURM job 101_1 reached its time limit \(30:00\): give more by --slurm-args='--time=...'", True),
        ("CANCELLED", r"SLURM job 101_1 was cancelled", True),
        ("NODE_FAIL", r"SLURM job 101_1 ended because its node failed", True),
        ("PREEMPTED", r"SLURM job 101_1 was preempted by another job", True),
        ("FAILED", r"SLURM job 101_1 failed", False),
        ("COMPLETED", r"SLURM job 101_1 ended, but its results cannot be seen here", False),
    ],
)  # fmt: skip
def test_the_state_of_a_lost_job_is_said(fake, tmp_path, state, said, killed):
    fake.set("state_1", state)
    lost = run_scans(scans(2, ("sub-01",)), tmp_path, FEW)
    assert list(lost) == ["sub-02"]
    assert re.match(said, lost["sub-02"].reason) and lost["sub-02"].killed is killed


def test_what_a_job_wrote_last_stands_in_the_details_and_its_own_error_is_the_reason(fake, tmp_path, monkeypatch):
    fake.set("state", "RUN")
    monkeypatch.setattr(slurm_jobs, "_script", lambda *_: "echo started; echo 'nio-pydra: error: no cake'; exit 1\n")
    lost = run_scans(scans(1), tmp_path, FEW)["sub-01"]
    assert lost.reason == "no cake" and lost.details.splitlines()[0] == "started"


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd-n1: error: StepId=18.batch exceeded memory limit (186417152 > 157286400), being killed",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=18.batch. Some of the step tasks have been OOM Killed.",
    ],
)
def test_too_little_memory_is_seen_in_the_log_where_the_state_does_not_tell(fake, tmp_path, monkeypatch, line):
    fake.set("state", "RUN")
    monkeypatch.setattr(slurm_jobs, "_script", lambda *_: f"echo '{line}'; exit 1\n")
    lost = run_scans(scans(1), tmp_path, FEW)["sub-01"]
    assert "SLURM job 101_0 ran out of memory (4G)" in lost.reason and lost.killed


def test_the_signal_that_killed_a_job_is_said(fake, tmp_path):
    fake.set("state", "FAILED")
    fake.set("job", "JobId=101 JobState=FAILED Reason=RaisedSignal:9(Killed) ExitCode=0:9 Requeue=0")
    lost = run_scans(scans(1), tmp_path, FEW)["sub-01"]
    assert lost.reason.startswith("SLURM job 101_0 was killed by signal 9 (often: out of memory)")


def test_a_job_that_the_controller_has_forgotten_is_looked_up_in_the_database(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "queued", lambda jobs: {})
    fake.set("accounts", "101_0|CANCELLED by 1000|4G|00:30:00")
    lost = run_scans(scans(1), tmp_path, FEW)
    assert "SLURM job 101_0 was cancelled" in lost["sub-01"].reason


@pytest.mark.parametrize("done", [True, False])
def test_without_a_database_the_result_itself_tells_whether_a_forgotten_job_succeeded(
    fake, tmp_path, monkeypatch, done
):
    monkeypatch.setattr(commands, "queued", lambda jobs: {})
    (fake.folder / "sacct").unlink()
    lost = run_scans(scans(1, ("sub-01",) if done else ()), tmp_path, FEW)
    assert not lost if done else "SLURM no longer knows why" in lost["sub-01"].reason


def test_a_controller_that_does_not_answer_is_waited_for(fake, tmp_path, caplog):
    fake.set("silent", "")
    assert run_scans(scans(1, ("sub-01",)), tmp_path, FEW) == {}
    assert len(fake.calls("squeue")) == 2 and not (fake.folder / "silent").exists()


def test_one_question_is_asked_for_all_jobs(fake, tmp_path):
    fake.set("largest", 5)  # indices to 4, so arrays of 4
    names = [f"sub-{number:02d}" for number in range(1, 11)]
    assert run_scans(scans(10, names), tmp_path, FEW) == {}
    assert [re.search(r"--array=(\S+)", call)[1] for call in fake.calls("sbatch")] == ["0-3", "0-3", "0-1"]
    (question,) = fake.calls("squeue")
    assert "--jobs=101,102,103" in question and not fake.calls("sacct")


def test_a_refusal_is_a_sentence_with_what_slurm_says(fake, tmp_path):
    fake.set("refusal", "sbatch: error: Batch job submission failed: Requested node configuration is not available")
    with pytest.raises(InputError, match=r"SLURM refuses the jobs \(Batch job .* is not available\): correct --slurm"):
        run_scans(scans(1), tmp_path, FEW)
    assert not list(tmp_path.glob("slurm/*/*"))


def test_a_refusal_that_passes_is_waited_for(fake, tmp_path, monkeypatch):
    fake.set(
        "refusal", "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    )
    pause_by(monkeypatch, lambda seconds: (fake.folder / "refusal").unlink(missing_ok=True))
    assert run_scans(scans(1, ("sub-01",)), tmp_path, FEW) == {}


def test_a_job_that_cannot_be_noted_is_cancelled(fake, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slurm_jobs, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        run_scans(scans(1), tmp_path, FEW)
    assert fake.calls("scancel") == ["scancel 101"]


@pytest.mark.parametrize(("reason", "hopeless"), [("PartitionTimeLimit", True), ("Priority", False)])
def test_jobs_that_can_never_start_are_given_up(fake, tmp_path, monkeypatch, reason, hopeless):
    fake.set("state", "PENDING")
    monkeypatch.setattr(slurm, "HOPELESS_SECONDS", 0.0)
    pauses = []

    def wait(seconds):
        pauses.append(seconds)
        queue = fake.folder / "queue"
        queue.write_text(queue.read_text().replace("|Priority", f"|{reason}"))
        if len(pauses) == 4:
            queue.write_text(queue.read_text().replace("PENDING", "CANCELLED"))

    pause_by(monkeypatch, wait)
    said = run_scans(scans(1), tmp_path, FEW)["sub-01"].reason
    assert ("could not start (SLURM's reason: PartitionTimeLimit)" in said) is hopeless
    assert (fake.calls("scancel") == ["scancel 101_0"]) is hopeless
    assert ("was cancelled" in said) and (len(pauses) < 4) is hopeless


def test_an_interrupt_cancels_the_jobs(fake, tmp_path, monkeypatch):
    fake.set("state", "RUNNING")

    def interrupt(seconds):
        raise KeyboardInterrupt

    pause_by(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_scans(scans(2), tmp_path, FEW)
    assert fake.calls("scancel") == ["scancel 101"]
    commands.cancel_submitted()
    assert len(fake.calls("scancel")) == 1


def test_a_signal_handler_can_cancel_the_jobs(fake, tmp_path, monkeypatch):
    fake.set("state", "PENDING")
    pause_by(monkeypatch, lambda seconds: commands.cancel_submitted())
    lost = run_scans(scans(2), tmp_path, FEW)
    assert fake.calls("scancel") == ["scancel 101"]
    assert all("was cancelled" in why.reason for why in lost.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_the_submission_waits_for_the_number_of_the_job(fake, tmp_path, number):
    """Without a number the job could not be cancelled."""
    (fake.folder / "sbatch").write_text(f"#!/bin/sh\nkill -{int(number)} {os.getpid()}\nsleep 0.3\necho 101\n")
    seen = []
    before = signal.signal(number, lambda *_: seen.append(set(commands._submitted)))
    try:
        assert commands.submit(tmp_path / "job.sh", 1, None, []) == "101"
    finally:
        signal.signal(number, before)
        commands.forget({"101"})
    assert seen == [{"101"}]


def test_jobs_of_a_killed_run_are_waited_for_and_not_submitted_twice(fake, tmp_path, monkeypatch):
    fake.set("state", "RUNNING")

    def vanish(seconds):
        raise SystemExit

    pause_by(monkeypatch, vanish)
    monkeypatch.setattr(commands, "cancel", lambda jobs: True)
    with pytest.raises(SystemExit):
        run_scans(scans(2), tmp_path, FEW)
    assert live_jobs(tmp_path)

    def end(seconds):
        queue = fake.folder / "queue"
        queue.write_text(queue.read_text().replace("RUNNING", "COMPLETED"))

    pause_by(monkeypatch, end)
    # One of them leaves no result, so that it is submitted after all, with a third scan.
    done = {"sub-01", "sub-03"}
    fake.set("state", "COMPLETED")
    lost = run_scans(Scans(scans(3).inputs, lambda inputs: inputs["scan"] in done), tmp_path, FEW)
    assert list(lost) == ["sub-02"]
    assert [re.search(r"--array=(\S+)", call)[1] for call in fake.calls("sbatch")] == ["0-1", "0-0", "0-0"]
    assert not live_jobs(tmp_path)


def test_locks_of_an_ended_job_are_deleted_whatever_the_host(fake, tmp_path):
    (tmp_path / "pydra").mkdir()
    (tmp_path / "pydra/python-dead.lock").write_text("77\nnode-1\n123\n")
    (tmp_path / "pydra/python-live.lock").write_text("78\nnode-1\n123\n")
    part = tmp_path / "slurm/run/part-1"
    part.mkdir(parents=True)
    (part / "55_0.holder").write_text('[77, "node-1"]')
    (part / "55_1.holder").write_text('[78, "node-1"]')
    (part.parent / "array_55.json").write_text('{"part": "part-1"}')
    fake.set("queue", "55_0|NODE_FAIL|4G|30:00|None\n55_1|RUNNING|4G|30:00|None")
    assert live_jobs(tmp_path)
    assert [path.name for path in (tmp_path / "pydra").iterdir()] == ["python-live.lock"]
    fake.set("queue", "")
    assert not live_jobs(tmp_path)
    assert not list((tmp_path / "pydra").iterdir()) and not list(part.parent.glob("array*"))


def test_a_work_folder_is_not_cleaned_while_a_job_needs_it(fake, tmp_path):
    folder = tmp_path / "nio_pydra"
    for path in (folder / "pydra/python-1/x", folder / "slurm/run/array_55.json"):
        path.parent.mkdir(parents=True)
        path.write_text('{"part": "part-1"}')
    fake.set("queue", "55_0|PENDING|4G|30:00|None")
    with pytest.raises(InputError, match="because another run uses it"):
        clean_work_folder(tmp_path)
    fake.set("queue", "")
    clean_work_folder(tmp_path)
    assert not (folder / "pydra").exists()


def test_a_job_of_other_code_refuses_to_run(fake, tmp_path, monkeypatch):
    fake.set("state", "FAILED")
    run_scans(scans(1), tmp_path, FEW)
    (part,) = tmp_path.glob("slurm/*/part-1")
    monkeypatch.setattr(slurm_jobs, "code_version", lambda: "edited")
    with pytest.raises(InputError, match="changed between the submission of this job and its start"):
        run_scan(part, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--array=0-3", "is a task of a job array already"),
        ("-a 0-3", "is a task of a job array already"),
        ("--partition=short mine.sh", "mine.sh: expected options of sbatch"),
        ("short", "short: expected options of sbatch"),
        ("--comment='x", "cannot be read"),
        ("-M other", "cannot be chosen"),
        ("--wait", "cannot be chosen"),
        ("-omine.log", "cannot be chosen"),
        ("--test-only", "cannot be chosen"),
    ],
)
def test_options_of_sbatch_that_cannot_work_are_refused(fake, options, said):
    with pytest.raises(InputError, match=said):
        commands.require_usable(options)
    commands.require_usable(
        "--partition=short -p short --gres=gpu:1 --comment='a b' -A lab --exclusive --oversubscribe"
    )


def test_without_sbatch_the_worker_is_refused_in_a_sentence(fake, monkeypatch, dataset, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # also where a real SLURM is installed
    assert bids_app.main(dataset.command(tmp_path / "out", "--worker", "slurm")) == 1
    assert "needs the command sbatch, which is absent" in capsys.readouterr().err
    assert bids_app.main(dataset.command(tmp_path / "out", "--slurm-args=--time=5")) == 1
    assert "--slurm-args belongs to --worker slurm" in capsys.readouterr().err


def test_memory_time_and_cpus_follow_engine_and_preset():
    brain = nib.Nifti1Image(np.ones((160, 192, 160), np.float32), np.eye(4))

    def needed(engine, preset=None, device="auto", threads=None):
        return resources_of(choose_method(engine, preset), Runtime(device=device), brain, 10**7, threads)

    paper, fast = needed("nio_m", "paper"), needed("nio_m", "fast")
    assert paper.memory_mb > fast.memory_mb >= 4096 and paper.minutes > fast.minutes
    assert paper.memory_mb % 1024 == 0 and paper.minutes % 5 == 0
    assert (paper.cpus, paper.threads, paper.gpus) == (4, None, 0)
    alone = needed("nio_m", "paper", threads=1)
    assert (alone.cpus, alone.threads) == (1, 1) and alone.minutes > paper.minutes
    assert needed("affine").cpus == 1
    assert needed("syn", "precise").minutes > needed("syn", "fast").minutes
    assert needed("nio_m", "paper", device="cuda").gpus == 1


@pytest.mark.slow
def test_jobs_do_what_processes_do_and_say_why_one_failed(fake, dataset, tmp_path, capsys):
    fake.set("state", "RUN")
    (dataset.root / "sub-02/anat/sub-02_T1w.nii.gz").write_bytes(b"")
    out = tmp_path / "out"
    command = dataset.command(out, "--worker", "slurm", "--omp-nthreads", "1")
    assert bids_app.main(command) == 1
    said = capsys.readouterr().out
    assert re.search(r"  sub-02: .*sub-02_T1w.nii.gz .*empty \(0 bytes\)", said), said
    assert re.search(r"sub-02: failed: .*sub-02_T1w.nii.gz .*empty \(0 bytes\)", said), "said when it failed"
    assert len(list((out / "sub-01/anat").iterdir())) == 13
    record = next((out / "sub-01/anat").glob("*_record.json"))
    assert json.loads(record.read_text())["threads"] == 1
    # The next run asks SLURM for the failed scan alone, and needs no lock of the first.
    for lock in ("python-old.lock", "workflow-old.lock"):
        SoftFileLock(tmp_path / "work/nio_pydra/pydra" / lock)
        (tmp_path / "work/nio_pydra/pydra" / lock).write_text("4711\nanother-host\n")
    fake.set("state", "FAILED")
    assert bids_app.main(command) == 1
    assert "--array=0-0" in fake.calls("sbatch")[-1]
    assert not list((tmp_path / "work/nio_pydra/pydra").glob("*old.lock"))
