"""Memory: what a registration takes and what there is."""

import logging
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from nio_pydra.engines import memory, nio
from nio_pydra.engines.contract import Memory, Runtime
from nio_pydra.errors import InputError

EACH = 4000.0


REGISTER = """if True:
    import sys
    import torch
    from nio_pydra.engines.memory import peak_memory_mb
    from nio_pydra.networks import load_network
    from nio_pydra.optimize.nio import NIOSettings, optimize_network
    from nio_pydra.optimize.problem import Problem
    from nio_pydra.optimize.resources import keep_freed_memory, limit_threads
    size, steps = int(sys.argv[1]), int(sys.argv[2])
    limit_threads(2)
    keep_freed_memory(size**3)
    pair = Problem(*torch.rand(2, 1, 1, size, size, size))
    optimize_network(load_network(None)[0], pair, NIOSettings(iterations=(0, 0, steps)), progress=False)
    print(peak_memory_mb())
"""


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 2])
def test_a_registration_takes_the_memory_that_was_predicted(steps):
    """Within a quarter; the second step is the first one with the moments of Adam."""
    size = 96
    ended = subprocess.run(
        [sys.executable, "-c", REGISTER, str(size), str(steps)], capture_output=True, text=True, check=True
    )
    predicted = memory.predicted_memory_mb((size, size, size), optimised=steps > 0, float32=True)
    assert predicted == pytest.approx(float(ended.stdout), rel=0.25)


@pytest.mark.parametrize(
    ("limits", "own", "expected"),
    [
        ({}, "", None),
        ({"memory.max": "max"}, "0::/", None),
        ({"memory.max": 100}, "0::/", 100),
        ({"memory/memory.limit_in_bytes": 200}, "", 200),
        # In a job of SLURM the limit is on the way from its own group to the root.
        ({"slurm/job_7/memory.max": 300, "slurm/job_7/step_0/memory.max": "max"}, "0::/slurm/job_7/step_0", 300),
        ({"memory/slurm/job_7/memory.limit_in_bytes": 400}, "9:memory:/slurm/job_7\n3:cpu:/slurm", 400),
        ({"slurm/job_8/memory.max": 100}, "0::/slurm/job_7", None),
    ],
)
def test_memory_is_that_of_the_container_or_the_job_where_it_has_a_limit(tmp_path, monkeypatch, limits, own, expected):
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path / "none")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    machine = memory.machine_memory_mb()
    assert machine > 512
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    (tmp_path / "own").write_text(own)
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{limit if limit == 'max' else limit * 2**20}\n")
    assert memory.machine_memory_mb() == (expected or machine)


def test_scans_that_do_not_fit_are_refused_with_the_number_that_does(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory_mb", lambda: 3.5 * EACH)
    memory.require_memory(EACH, 3)
    with pytest.raises(InputError, match=rf"{4 * EACH / 2**10:.1f} GiB are needed for 4 .*: use --nprocs 3\.$"):
        memory.require_memory(EACH, 4)


def test_a_single_scan_that_may_not_fit_is_warned_about(monkeypatch, caplog):
    monkeypatch.setattr(memory, "machine_memory_mb", lambda: 1000.0)
    monkeypatch.setattr(logging.getLogger("nio_pydra"), "propagate", True)
    memory.require_memory(EACH, 1)
    assert "may be killed" in caplog.text
    with pytest.raises(InputError, match="use --nprocs 1, which may still be killed"):
        memory.require_memory(EACH, 2)


def test_scans_that_the_gpu_does_not_hold_are_refused(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory_mb", lambda: 1e6)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2.5 * EACH * 2**20, 1e12))
    memory.require_memory(EACH, 4)
    memory.require_memory(EACH, 2, device=True)
    with pytest.raises(InputError, match=rf"the GPU has {2.5 * EACH / 2**10:.1f} GiB free: use --nprocs 2\.$"):
        memory.require_memory(EACH, 3, device=True)


def test_a_gpu_is_predicted_to_need_what_the_processor_would(monkeypatch):
    image = nib.Nifti1Image(np.ones((64, 64, 64), np.float32), np.diag([2.0, 2, 2, 1]))
    engine, settings = nio.NIO_M, nio.NIO_M.presets["paper"]
    processor = engine.memory_mb(image, settings, Runtime(device="cpu", precision="float32"))
    assert processor.process > memory.BASE_MB and processor.device == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = engine.memory_mb(image, settings, Runtime(device="cuda", precision="float32"))
    assert found == Memory(memory.BASE_MB, processor.process)


def test_the_peak_of_the_gpu_is_that_of_one_registration(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    memory.forget_peak_memory()
    assert not calls  # CUDA is not started for this
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    memory.forget_peak_memory()
    assert calls == ["reset"]
