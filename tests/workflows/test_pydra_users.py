"""What users of Pydra meet: the namespace, the types of inputs and outputs, defaults, and a workflow of their own."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fileformats.application import Json
from fileformats.core.exceptions import FormatMismatchError
from fileformats.medimage import NiftiGz
from pydra.compose import python, workflow

from nio_pydra.errors import InputError
from nio_pydra.spatial.itk import read_affine, read_h5

EXAMPLE = Path(__file__).parents[2] / "examples" / "split_workflow.py"


@pytest.fixture
def scans(dataset):
    """Return the atlas and a scan, skull-stripped."""
    return dataset.atlas, dataset.root / "sub-02/anat/sub-02_T1w.nii.gz"


def test_tasks_are_found_beside_those_of_other_packages():
    code = "import pydra.engine; "
    code += "import pydra.tasks.nio as n, nio_pydra.tasks as t; print(n.Register is t.Register, n.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLE.parents[1], capture_output=True, text=True)
    assert done.stdout.startswith("True 0"), done.stderr
    for shared in ("pydra", "pydra/tasks"):
        assert not (EXAMPLE.parents[1] / shared / "__init__.py").exists()


@pytest.mark.slow
def test_a_pair_needs_images_only_and_outputs_fit_typed_inputs(scans, tmp_path):
    from pydra.tasks.nio import AffineAlign, Prepare, Register

    @python.define
    def NeedsTypes(warped: NiftiGz, record: Json) -> str:
        import json
        from pathlib import Path

        return json.loads(Path(record).read_text())["preset"]

    @workflow.define(outputs=["preset", "seconds"])
    def Pair(fixed: NiftiGz, moving: NiftiGz):
        masks = {
            f"{role}_mask": workflow.add(Prepare(image=image, skull_stripped=True), name=f"Mask{role}").mask
            for role, image in (("fixed", fixed), ("moving", moving))
        }
        aligned = workflow.add(AffineAlign(fixed=fixed, moving=moving, **masks))
        registered = workflow.add(Register(fixed=fixed, moving=moving, **masks, affine=aligned.affine, engine="affine"))
        return workflow.add(NeedsTypes(warped=registered.warped, record=registered.record)).out, registered.record

    fixed, moving = scans
    done = Pair(fixed=fixed, moving=moving)(cache_root=tmp_path / "cache")
    assert done.preset == "default"
    assert json.loads(Path(done.seconds).read_text())["seconds"]["affine"] is None  # no affine_record was given


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mgz", ".img"])
@pytest.mark.parametrize("read", [read_affine, read_h5])
def test_an_image_given_as_affine_is_named_as_such(tmp_path, suffix, read):
    path = tmp_path / f"scan{suffix}"
    kind = {".mgz": nib.MGHImage, ".img": nib.Nifti1Pair}.get(suffix, nib.Nifti1Image)
    nib.save(kind(np.ones((4, 4, 4), np.float32), np.eye(4)), path)
    with pytest.raises(InputError, match=r"scan\S+ is an image: expected an? \w+.* Are two inputs exchanged\?"):
        read(path)


def test_a_file_that_is_nothing_is_no_traceback_either(tmp_path):
    (tmp_path / "empty.mat").write_bytes(b"")
    with pytest.raises(InputError, match="is not an ITK affine"):
        read_affine(tmp_path / "empty.mat")


def test_inputs_accept_every_format_that_nibabel_reads(tmp_path):
    """The types of fileformats.medimage would refuse these."""
    from pydra.tasks.nio import Prepare

    for name in ("T1.mgz", "pair.img", "SCAN.NII.GZ", "empty.nii.gz"):
        (tmp_path / name).write_bytes(name.encode())
        assert Prepare(image=tmp_path / name).image.fspath.name == name
        with pytest.raises(FormatMismatchError):
            NiftiGz(tmp_path / name)


@pytest.mark.slow
def test_the_example_of_a_split_workflow_runs_and_continues_from_its_cache(tmp_path):
    def run():
        done = subprocess.run([sys.executable, EXAMPLE, tmp_path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    found = json.loads((tmp_path / "similarity.json").read_text())
    assert set(found) == {"scan1.nii.gz", "scan2.nii.gz"} and min(found.values()) > 0.3
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("python-*/record.json")}
    assert len(records) == 2
    assert run() == first
    assert {path: path.stat().st_mtime_ns for path in records} == records
