"""Templates by name, cohort and resolution, from small TemplateFlow folders, with no network."""

import json
import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

OFFLINE = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
MNI = "tpl-MNI152NLin2009cAsym/tpl-MNI152NLin2009cAsym"
INFANT = "tpl-MNIInfant/cohort-{0}/tpl-MNIInfant_cohort-{0}"


@pytest.fixture
def home(tmp_path, dataset, write_image):
    """Function that fills a TemplateFlow folder with T1w images of these names, each with a mask."""
    image = nib.load(dataset.atlas)
    folder = tmp_path / "tf"

    def make(*stems):
        folder.mkdir(exist_ok=True)
        for number, stem in enumerate(stems):
            scan = image.get_fdata(dtype=np.float32) + number * (image.get_fdata(dtype=np.float32) > 0)
            write_image(scan, folder / f"{stem}_T1w.nii.gz", image.affine)
            write_image((scan > 0).astype(np.uint8), folder / f"{stem}_desc-brain_mask.nii.gz", image.affine)
        return folder

    return make


def run(dataset, home, out, templates, *more):
    """Run the app in a process of its own, because TemplateFlow reads its folder once; return status and output."""
    code = "import sys; from nio_pydra.cli.bids_app import main; sys.exit(main(sys.argv[1:]))"
    arguments = [dataset.root, out, "participant", "-w", out.parent / "work", "--participant-label", "01"]
    arguments += ["--output-spaces", *templates.split(), "--engine", "affine", *more]
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | OFFLINE | {"TEMPLATEFLOW_HOME": str(home)},
    )
    assert "Traceback" not in ended.stderr
    print(ended.stdout)
    return ended.returncode, [line for line in ended.stderr.splitlines() if "error: " in line]


def names_of(out):
    return {path.name.removeprefix("sub-01_") for path in (out / "sub-01/anat").iterdir()}


def test_cohort_and_resolution_are_found_and_in_the_names_as_fmriprep_writes_them(dataset, home, tmp_path, bids_errors):
    folder = home(*(f"{INFANT.format(cohort)}_res-{res}" for cohort in (1, 2) for res in (1, 2)))
    more = ["--atlas-labels", dataset.atlas_labels]
    assert run(dataset, folder, tmp_path / "out", "MNIInfant:cohort-2:res-2", *more) == (0, [])
    assert names_of(tmp_path / "out") == {
        "from-T1w_to-MNIInfant+2_mode-image_xfm.h5",
        "from-MNIInfant+2_to-T1w_mode-image_xfm.h5",
        "from-T1w_to-MNIInfant+2_mode-image_xfm.json",
        "from-MNIInfant+2_to-T1w_mode-image_xfm.json",
        "space-MNIInfant_cohort-2_res-2_desc-affine_T1w.nii.gz",
        "space-MNIInfant_cohort-2_res-2_desc-affine_T1w.json",
        "space-MNIInfant_cohort-2_res-2_desc-affine_record.json",
        "desc-nio_mask.nii.gz",
        "desc-nio_mask.json",
        "space-T1w_atlas-MNIInfant+2_dseg.nii.gz",
        "space-T1w_atlas-MNIInfant+2_dseg.json",
    }
    sidecar = tmp_path / "out/sub-01/anat/sub-01_space-MNIInfant_cohort-2_res-2_desc-affine_T1w.json"
    assert json.loads(sidecar.read_text())["SpatialReference"].endswith(
        "/tpl-MNIInfant/cohort-2/tpl-MNIInfant_cohort-2_res-2_T1w.nii.gz"
    )
    assert bids_errors(tmp_path / "out") == []

    # Another cohort is another space; another resolution of the same cohort would have the same transforms. Spaces of
    # fMRIPrep that are no templates are left out.
    assert run(dataset, folder, tmp_path / "out", "MNIInfant+1 fsnative MNIInfant:cohort-1:res-native") == (0, [])
    assert "space-MNIInfant_cohort-1_desc-affine_T1w.nii.gz" in names_of(tmp_path / "out")
    status, said = run(dataset, folder, tmp_path / "out", "MNIInfant+1:res-1 MNIInfant+1:res-2")
    assert status == 1
    assert "given two resolutions of MNIInfant+1, and names of transforms would not tell them apart" in said[0]
    for other in ("MNIInfant:cohort-2", "MNIInfant:res-1:cohort-2"):
        status, said = run(dataset, folder, tmp_path / "out", other)
        assert status == 1
        assert "holds results for another resolution of MNIInfant" in said[0]

    from nio_pydra.cli import bids_app

    assert bids_app.main([str(dataset.root), str(tmp_path / "out"), "group"]) == 0
    table = (tmp_path / "out/group_desc-affine_registration.tsv").read_text().splitlines()
    assert [line.split("\t")[3] for line in table] == ["atlas", "MNIInfant:cohort-1", "MNIInfant:cohort-2:res-2"]


@pytest.mark.parametrize(
    ("stems", "template", "image"),
    [
        ([f"{MNI}_res-01", f"{MNI}_res-02"], "MNI152NLin2009cAsym", f"{MNI}_res-01"),
        ([f"{MNI}_res-01", f"{MNI}_res-02"], "MNI152NLin2009cAsym:res-2", f"{MNI}_res-02"),
        ([f"{MNI}_res-01", f"{MNI}_res-02"], "MNI152NLin2009cAsym:res-02", f"{MNI}_res-02"),
        ([f"{MNI}_res-01", f"{MNI}_res-02"], "MNI152NLin2009cAsym:res-native", f"{MNI}_res-01"),
        (["tpl-Own/tpl-Own"], "Own", "tpl-Own/tpl-Own"),  # without a number
        (["tpl-Own/tpl-Own", "tpl-Own/tpl-Own_space-X"], "Own", "tpl-Own/tpl-Own"),
    ],
)
def test_the_image_of_a_template_is_found(home, stems, template, image):
    folder = home(*stems)
    code = (
        "import sys; from nio_pydra.bids.templates import atlas_from_template as get; a = get(sys.argv[1]); "
        "print(a.image, a.mask, a.resolution)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, template],
        capture_output=True, text=True, check=True, env=os.environ | OFFLINE | {"TEMPLATEFLOW_HOME": str(folder)},
    )  # fmt: skip
    resolution = "2" if ":res-" in template and "native" not in template else None
    assert ended.stdout.split() == [f"{folder}/{image}_T1w.nii.gz", f"{folder}/{image}_desc-brain_mask.nii.gz",
                                    str(resolution)]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "pattern"),
    [
        ("MNIInfant", r"has the cohorts 1, 2, .*11, and one must be chosen: give MNIInfant:cohort-1"),
        ("MNIInfant:cohort-99", r"has the cohorts 1, 2, .*, and cohort 99 is none of them"),
        ("MNIInfant:cohort-1:res-7", r"in the resolutions 1, 2, not 7"),
        ("MNI152NLin2009cAsym:cohort-1", r"has no cohorts, and cohort 1 is none of them: leave it out"),
        ("MNI152NLin2009cAsym:res-first", r"'res-first' is not understood, expected NAME, NAME:cohort-C"),
        ("MNI152NLin2009cAsym:nonsense-1", r"'nonsense-1' is not understood"),
        ("MNI152NLin2009cAsym:res-1:res-2", r"'res-2' is not understood"),
        ("NoSuchTemplate", r"TemplateFlow has no template NoSuchTemplate: it has .*MNI152NLin6Asym.*MNIInfant"),
        # These exist, but not in this folder.
        ("MNI152NLin6Asym", r"TemplateFlow has MNI152NLin6Asym, but TEMPLATEFLOW_HOME \S+/tf does not \(it holds "
         r"MNI152NLin2009cAsym, MNIInfant\): run `templateflow update`"),
        ("MNIInfant:cohort-3", r"TemplateFlow has MNIInfant:cohort-3, but TEMPLATEFLOW_HOME \S+/tf does not"),
        ("MNI152NLin2009cAsym:res-2", r"TemplateFlow has MNI152NLin2009cAsym:res-2, but TEMPLATEFLOW_HOME"),
    ],
)  # fmt: skip
def test_templates_that_do_not_exist_and_those_not_at_hand_have_different_messages(
    dataset, home, tmp_path, template, pattern
):
    folder = home(f"{MNI}_res-01", f"{INFANT.format(1)}_res-1")
    status, said = run(dataset, folder, tmp_path / "out", template)
    assert status == 1
    assert len(said) == 1
    assert re.search(pattern, said[0])


def test_a_template_that_is_known_but_empty_cannot_be_downloaded_offline(dataset, home, tmp_path):
    folder = home(f"{MNI}_res-01")
    (folder / f"{MNI}_res-01_T1w.nii.gz").write_bytes(b"")  # TemplateFlow's own stand-in for a file to be downloaded
    status, said = run(dataset, folder, tmp_path / "out", "MNI152NLin2009cAsym")
    assert status == 1
    assert re.search(r"MNI152NLin2009cAsym is not in \S+/tf and cannot be downloaded \(\w+\)", said[0])
