"""Tasks and interfaces in processes that were forked after torch and numba were used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.networks import LapIRN, LapIRNConfig, save_network
from nio_pydra.spatial.itk import write_h5
from nio_pydra.spatial.transforms import Transform

USE_THREADS = """
import torch
from nio_pydra.spatial.transforms import interpolate
import numpy as np
torch.set_num_threads(2)
torch.nn.functional.conv3d(torch.rand(1, 4, 40, 40, 40), torch.rand(4, 4, 3, 3, 3))
interpolate(np.zeros((1, 50, 50, 50)), np.zeros((200_000, 3)))
"""
PYDRA = """
from nio_pydra.tasks import DrawFigures, Register
how = {"worker": "cf", "n_procs": 1, "cache_root": cache}
done = Register(**given)(**how)
images = {"atlas": given["fixed"], "atlas_mask": given["fixed"], "scan": given["moving"], "mask": given["moving"]}
drawn = DrawFigures(**images, forward_xfm=done.forward_xfm, inverse_xfm=done.inverse_xfm)(**how)
assert drawn.registration_figure.fspath.exists()
print(done.warped, done.record)
"""
NIPYPE = """
from nipype.pipeline.engine import Node, Workflow
from nio_pydra.interfaces import NIOPropagateLabels, NIORegistration
flow = Workflow(name="flow", base_dir=cache)
register = Node(NIORegistration(skull_stripped=True, engine="affine"), name="register")
register.inputs.fixed, register.inputs.moving = given["fixed"], given["moving"]
propagate = Node(NIOPropagateLabels(labels=labels, reference=given["fixed"]), name="labels")
flow.connect(register, "forward_xfm", propagate, "transform")
flow.config["execution"] = {"remove_unnecessary_outputs": "false"}
flow.run(plugin="MultiProc", plugin_args={"n_procs": 2, "memory_gb": 4, "mp_context": "fork"})
print(cache + "/flow/labels/labels.nii.gz", cache + "/flow/register/record.json")
"""


@pytest.mark.slow
@pytest.mark.parametrize("runner", [PYDRA, NIPYPE], ids=["pydra's cf worker", "nipype's MultiProc"])
def test_a_registration_is_done_where_torch_and_numba_ran_before_the_fork(dataset, tmp_path, runner):
    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    weights, affine, times = tmp_path / "tiny.safetensors", tmp_path / "affine.h5", tmp_path / "times.json"
    tiny = LapIRN(LapIRNConfig(encoder_channels=4, channels=4, head_channels=(4, 4, 4)))
    about = {"orientation": "LIA", "voxel_size_mm": 4.0, "intensity_scaling": "percentile", "lambda": 0.4}
    save_network(tiny, weights, about)
    write_h5(Transform((np.eye(4),)), affine)
    times.write_text("{}")
    given = {"fixed": dataset.atlas, "moving": scan, "affine": affine, "affine_record": times, "weights": weights}
    given = {name: str(path) for name, path in given.items()} | {"engine": "nio_m", "preset": "draft", "device": "cpu"}
    labels = str(dataset.derivatives / "sub-01/anat/sub-01_desc-malf_dseg.nii.gz")
    code = f"given, labels, cache = {given!r}, {labels!r}, {str(tmp_path / 'cache')!r}\n{USE_THREADS}{runner}"
    environment = os.environ | {"NO_ET": "1", "PYDRA_HASH_CACHE": str(tmp_path / "hashes")}
    command = [sys.executable, "-c", f"if __name__ == '__main__':\n    exec({code!r})"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    image, record = map(Path, done.stdout.splitlines()[-1].split())
    assert nib.load(image).get_fdata().any()
    assert json.loads(record.read_text())["similarity"]["after"] > 0
