"""Memory: what a registration takes and what there is."""

import logging

import pytest

from nio_pydra.engines import memory
from nio_pydra.errors import InputError

SHAPE = (160, 192, 144)


def test_prediction_is_linear_in_the_voxels_of_the_grid():
    one, two = memory.predicted_memory_mb(SHAPE), memory.predicted_memory_mb((320, 192, 144))
    assert two - one == pytest.approx(one - memory.BASE_MB)
    assert one == pytest.approx(memory.predicted_memory_mb(SHAPE[::-1]))


def test_memory_is_that_of_the_container_where_it_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", ())
    machine = memory.machine_memory_mb()
    assert machine > 256
    (tmp_path / "none").write_text("max\n")
    (tmp_path / "limit").write_text(f"{100 * 2**20}\n")
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", (tmp_path / "absent", tmp_path / "none"))
    assert memory.machine_memory_mb() == machine
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", (tmp_path / "none", tmp_path / "limit"))
    assert memory.machine_memory_mb() == 100


def test_scans_that_do_not_fit_are_refused_with_the_number_that_does(monkeypatch):
    each = memory.predicted_memory_mb(SHAPE)
    monkeypatch.setattr(memory, "machine_memory_mb", lambda: 3.5 * each)
    memory.require_memory(SHAPE, 3)
    with pytest.raises(InputError, match=rf"{4 * each / 2**10:.1f} GB are needed for 4 .*: use --nprocs 3\.$"):
        memory.require_memory(SHAPE, 4)


def test_a_single_scan_that_may_not_fit_is_warned_about(monkeypatch, caplog):
    monkeypatch.setattr(memory, "machine_memory_mb", lambda: 1000.0)
    monkeypatch.setattr(logging.getLogger("nio_pydra"), "propagate", True)
    memory.require_memory(SHAPE, 1)
    assert "may be killed" in caplog.text
    with pytest.raises(InputError, match="use --nprocs 1, which may still be killed"):
        memory.require_memory(SHAPE, 2)
