"""What nipype's scheduler is told about a node: processors and memory."""

import nibabel as nib
import numpy as np
import pytest
from nipype.pipeline.engine import Node

from nio_pydra.engines.names import ENGINES, get_engine
from nio_pydra.interfaces import NIORegistration, PredictedMemory
from nio_pydra.system.cores import default_threads


@pytest.mark.parametrize(("given", "counted"), [({}, None), ({"num_threads": 0}, None), ({"num_threads": 3}, 3)])
def test_nipype_counts_the_processors_that_the_registration_uses(given, counted):
    node = Node(NIORegistration(**given), name="register")
    assert node.n_procs == (counted or default_threads())
    assert node.inputs.runtime().thread_count == node.n_procs


def test_nipype_is_told_the_memory_that_the_engine_predicts_for_the_fixed_image(tmp_path, write_image):
    inside = np.zeros((200, 200, 200), np.float32)
    inside[20:180, 20:180, 20:180] = 100
    scans = [write_image(inside * factor, tmp_path / f"{factor}.nii.gz", np.eye(4)) for factor in (1, 2)]
    register = NIORegistration(fixed=scans[0], moving=scans[1], engine="nio_m", precision="float32", device="cpu")
    node = Node(register, name="register")
    node.ram_estimator = PredictedMemory()
    fixed = nib.load(scans[0])
    method, runtime = register.inputs.method(), register.inputs.runtime()
    predicted = method.engine.memory_mb(fixed, method.settings, runtime).process / 2**10
    assert node.mem_gb_runtime == pytest.approx(predicted) and predicted > 5


def test_an_input_that_cannot_be_used_does_not_end_the_scheduler(tmp_path):
    (tmp_path / "empty.nii.gz").touch()
    node = Node(NIORegistration(fixed=tmp_path / "empty.nii.gz", device="cpu"), name="register")
    node.ram_estimator = PredictedMemory()
    assert node.mem_gb_runtime == 2
    assert "empty.nii.gz" in node.ram_estimator_str


@pytest.mark.parametrize("engine", ENGINES)
def test_the_settings_of_every_engine_can_be_remembered_for_the_prediction(engine):
    for settings in get_engine(engine).presets.values():
        assert hash(settings) == hash(settings)
