"""Registration inside sMRIPrep: its own workflows, on small images and templates made here."""

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.spatial.itk import read_h5

pytest.importorskip("smriprep", reason="sMRIPrep is not installed: pip install '.[smriprep]'")

PRELUDE = """
import json, sys
from pathlib import Path
from nipype.pipeline import engine as pe
from niworkflows.utils.spaces import Reference, SpatialReferences
from smriprep.workflows.anatomical import init_anat_fit_wf
from smriprep.workflows.fit.registration import init_register_template_wf
from niworkflows.engine import splice_workflow
from nio_pydra.workflows.smriprep import init_nio_register_template_wf, use_nio

def fit(folder):
    scan, mask = (str(folder / f"raw/sub-01/anat/sub-01_{kind}.nii.gz") for kind in ("T1w", "mask"))
    spaces = SpatialReferences([Reference("MNI152NLin2009cAsym"), Reference("MNIInfant", {"cohort": "1"})])
    return init_anat_fit_wf(
        bids_root=str(folder / "raw"), output_dir=str(folder / "fit"), spaces=spaces, t1w=[scan], t2w=[],
        precomputed={"t1w_preproc": scan, "t1w_mask": mask, "t1w_dseg": mask, "t1w_tpms": [mask] * 3},
        freesurfer=False, hires=False, longitudinal=False, msm_sulc=False, skull_strip_mode="skip",
        skull_strip_template=Reference("OASIS30ANTs"), omp_nthreads=2,
    )
"""


@pytest.fixture
def folder(dataset, tmp_path, write_image):
    """Folder with a TemplateFlow of two templates, and the dataset with a mask."""
    atlas = nib.load(dataset.atlas)
    for name, stem in (
        ("MNI152NLin2009cAsym", "tpl-MNI152NLin2009cAsym_res-01"),
        ("MNIInfant", "cohort-1/tpl-MNIInfant_cohort-1_res-1"),
        ("OASIS30ANTs", "tpl-OASIS30ANTs_res-01"),
    ):
        home = tmp_path / "tf" / f"tpl-{name}"
        voxels = atlas.get_fdata(dtype=np.float32) + 5 * len(stem) * (atlas.get_fdata(dtype=np.float32) > 0)
        write_image(voxels, home / f"{stem}_T1w.nii.gz", atlas.affine)
        write_image((voxels > 0).astype(np.uint8), home / f"{stem}_desc-brain_mask.nii.gz", atlas.affine)
        (home / "template_description.json").write_text(json.dumps({"Identifier": name, "Name": f"Small {name}"}))
    scan = nib.load(dataset.root / "sub-01/anat/sub-01_T1w.nii.gz")
    mask = (scan.get_fdata() > 0).astype(np.uint8)
    write_image(mask, dataset.root / "sub-01/anat/sub-01_mask.nii.gz", scan.affine)
    return tmp_path


def run(code, folder):
    """Run code in a process of its own, because TemplateFlow reads its folder once; return what it printed last."""
    environment = os.environ | {"TEMPLATEFLOW_HOME": str(folder / "tf"), "TEMPLATEFLOW_AUTOUPDATE": "off"}
    done = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}\nfolder = Path({str(folder)!r})\n{code}"],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_workflow_can_stand_in_for_smripreps(folder):
    found = run(
        """
given = {"sloppy": True, "omp_nthreads": 3, "templates": ["MNI152NLin2009cAsym"]}
def ends(workflow):
    nodes = {name: workflow.get_node(name) for name in ("inputnode", "poutputnode", "outputnode")}
    return [(name, sorted(node.outputs.get()), node.iterables, type(node).__name__) for name, node in nodes.items()]
ours, theirs = (make(**given) for make in (init_nio_register_template_wf, init_register_template_wf))
node = ours.get_node("registration")
print(json.dumps([ends(ours) == ends(theirs), ours._tag == theirs._tag, ours.__desc__, node.n_procs,
                  node.inputs.method().preset, "trunc_mov" in ours.list_node_names()]))
""",
        folder,
    )
    same_ends, same_tag, text, threads, preset, truncates = found
    assert same_ends and same_tag
    assert "Small MNI152NLin2009cAsym* [@mni152nlin2009casym" in text and "antsRegistration" not in text
    assert (threads, preset, truncates) == (3, "draft", False)


def test_every_participant_of_a_pipeline_is_spliced_even_without_an_edge_above(folder):
    found = run(
        """
root = pe.Workflow(name="root")
for number in (1, 2):
    participant = pe.Workflow(name=f"sub_{number}_wf")
    participant.add_nodes([fit(folder)])
    root.add_nodes([participant])
for node in [root.get_node(name) for name in root.list_node_names()]:
    node.config = {"execution": {"crashdump_dir": "/crashes"}}
replaced = use_nio(root, engine="affine")
nodes = [root.get_node(name) for name in root.list_node_names() if name.endswith("registration")]
print(json.dumps([replaced, [type(node.interface).__name__ for node in nodes],
                  [node.config["execution"]["crashdump_dir"] for node in nodes]]))
""",
        folder,
    )
    assert found == [
        ["MNI152NLin2009cAsym", "MNIInfant:cohort-1"] * 2,
        ["NIOSpatialNormalization"] * 2,
        ["/crashes"] * 2,
    ]


def test_a_registration_of_t2w_images_is_refused(folder):
    said = run(
        """
theirs = init_register_template_wf(sloppy=True, omp_nthreads=1, templates=["MNI152NLin2009cAsym"], image_type="T2w")
root = pe.Workflow(name="root")
root.add_nodes([theirs])
try:
    use_nio(root, engine="affine")
except Exception as error:
    print(json.dumps(str(error)))
""",
        folder,
    )
    assert "The image type is T2w: expected T1w" in said


@pytest.mark.slow
def test_the_spliced_workflow_gives_the_transforms_of_the_app_under_multiproc_after_torch(folder, dataset):
    text = run(
        """
import torch
torch.set_num_threads(2)
torch.rand(300, 300) @ torch.rand(300, 300)  # a forked process could now hang
workflow = fit(folder)
nio = init_nio_register_template_wf(
    sloppy=False, omp_nthreads=1, templates=["MNI152NLin2009cAsym", "MNIInfant:cohort-1"], engine="affine")
splice_workflow(workflow, {"anat.register-template": nio})
workflow.inputs.inputnode.t1w = [str(folder / "raw/sub-01/anat/sub-01_T1w.nii.gz")]
workflow.base_dir = folder / "nipype"
workflow.run(plugin="MultiProc", plugin_args={"n_procs": 2, "memory_gb": 8})
print(json.dumps(workflow.visit_desc()))
""",
        folder,
    )
    assert "engine `affine`" in text and "antsRegistration" not in text
    assert len([*(folder / "fit/smriprep/sub-01/anat").glob("*.h5")]) == 4
    code = "import sys; from nio_pydra.cli.bids_app import main; sys.exit(main(sys.argv[1:]))"
    command = [dataset.root, folder / "out", "participant", "-w", folder / "work", "--participant-label", "01",
               "--template", "MNIInfant:cohort-1", "--engine", "affine"]  # fmt: skip
    environment = os.environ | {"TEMPLATEFLOW_HOME": str(folder / "tf")}
    subprocess.run([sys.executable, "-c", code, *map(str, command)], env=environment, check=True, timeout=300)
    points = np.random.default_rng(0).uniform(-40, 40, (100, 3))
    for name in ("from-T1w_to-MNIInfant+1", "from-MNIInfant+1_to-T1w"):
        places = folder / "fit/smriprep", folder / "out"
        theirs, ours = (read_h5(place / f"sub-01/anat/sub-01_{name}_mode-image_xfm.h5") for place in places)
        moved = ours.map_points(points)
        assert np.linalg.norm(moved - points, axis=1).min() > 1
        np.testing.assert_allclose(theirs.map_points(points), moved, atol=1e-3)


@pytest.mark.slow
def test_nio_fmriprep_builds_the_workflow_of_fmriprep_with_our_registration_for_every_participant(folder, dataset):
    pytest.importorskip("fmriprep", reason="fMRIPrep is not installed")
    programs = folder / "programs"
    programs.mkdir()
    for name in ("mri_convert", "antsApplyTransforms"):  # which fMRIPrep looks for; here they need not work
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    for subject in ("01", "02"):
        scan = dataset.root / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
        mask = dataset.root / "sub-01/anat/sub-01_mask.nii.gz"
        derived = folder / f"pre/sub-{subject}/anat"
        derived.mkdir(parents=True)
        tissues = (f"label-{tissue}_probseg" for tissue in ("GM", "WM", "CSF"))
        for name, source in {
            "desc-preproc_T1w": scan,
            **dict.fromkeys(("desc-brain_mask", "dseg", *tissues), mask),
        }.items():
            (derived / f"sub-{subject}_{name}.nii.gz").write_bytes(source.read_bytes())
    description = json.loads((dataset.derivatives / "dataset_description.json").read_text())
    (folder / "pre/dataset_description.json").write_text(json.dumps(description))
    mask.unlink()
    command = ["fmriprep", "--engine", "affine", "--", dataset.root, folder / "prep", "participant", "--anat-only",
               "--fs-no-reconall", "--output-spaces", "MNIInfant:cohort-1", "-w", folder / "work", "--notrack",
               "--skip-bids-validation", "--boilerplate-only", "--md-only-boilerplate",
               "-d", f"pre={folder / 'pre'}"]  # fmt: skip
    code = (
        "if __name__ == '__main__':\n    import sys; from nio_pydra.cli.nio import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = os.environ | {"TEMPLATEFLOW_HOME": str(folder / "tf"), "TEMPLATEFLOW_AUTOUPDATE": "off"}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], env=environment, cwd=folder, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (said,) = [line for line in done.stdout.splitlines() if "nio_pydra registers to" in line]
    assert said.count("MNIInfant:cohort-1") == 2
    text = (folder / "prep/logs/CITATION.md").read_text()
    assert "engine `affine`" in text and "antsRegistration" not in text
