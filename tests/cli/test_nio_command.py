"""`nio`, and what it shares with `nio-pydra`."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.cli import nio
from nio_pydra.cli.errors import exit_status
from nio_pydra.engines.names import get_engine
from nio_pydra.system.settings import plain


@pytest.mark.parametrize("command", ["nio", "bids_app"])
def test_help_imports_nothing_heavy(command):
    code = (
        f"import sys; from nio_pydra.cli.{command} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ants', 'bids', 'pydra', 'nilearn', 'numpy'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[0].startswith("usage: nio")
    assert ended.stdout.splitlines()[-1] == "[]"


def test_register_writes_transforms_image_labels_and_record(dataset, tmp_path, capsys):
    labels = dataset.derivatives / "sub-01/anat/sub-01_desc-malf_dseg.nii.gz"
    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    arguments = ["register", "--fixed", str(dataset.atlas), "--moving", str(scan)]
    arguments += ["--fixed-labels", str(dataset.atlas_labels), "--moving-labels", str(labels)]
    arguments += ["--out", str(tmp_path / "pair"), "--skull-stripped", "--engine", "affine"]
    assert nio.main(arguments) == 0
    assert {path.name for path in (tmp_path / "pair").iterdir()} == {
        "forward_xfm.h5", "inverse_xfm.h5", "warped.nii.gz", "labels.nii.gz", "fixed_labels.nii.gz",
        "record.json",
    }  # fmt: skip
    record = json.loads((tmp_path / "pair/record.json").read_text())
    assert f"mean Dice {record['dice']['mean']:.3f}" in capsys.readouterr().out


def registered(dataset, out, *more):
    """Register sub-01 to the atlas; return the record and the warped image."""
    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    arguments = ["register", "--fixed", dataset.atlas, "--moving", scan, "--out", out, "--skull-stripped", *more]
    assert nio.main([str(argument) for argument in arguments]) == 0
    return json.loads((out / "record.json").read_text()), nib.load(out / "warped.nii.gz").get_fdata()


def test_register_writes_the_volume_change_on_request(dataset, tmp_path):
    record, warped = registered(dataset, tmp_path / "pair", "--engine", "affine", "--output-jacobian")
    factor = nib.load(tmp_path / "pair/jacobian.nii.gz").get_fdata()
    assert factor.shape == warped.shape and np.allclose(factor, np.prod(record["affine"]["scales"]), rtol=1e-5)
    registered(dataset, tmp_path / "pair", "--engine", "affine")
    assert not (tmp_path / "pair/jacobian.nii.gz").exists(), "it is of the earlier registration"


def test_register_uses_the_settings_of_a_file_and_records_them_in_full(dataset, tmp_path):
    (tmp_path / "settings.toml").write_text('preset = "fast"\niterations = [2, 0, 0]\n')
    preset = get_engine("syn").presets["fast"]
    before, by_preset = registered(dataset, tmp_path / "preset", "--engine", "syn", "--preset", "fast")
    after, by_file = registered(dataset, tmp_path / "file", "--engine", "syn", "--settings", tmp_path / "settings.toml")
    assert before["settings"] == plain(preset)
    assert after["settings"] == plain(replace(preset, iterations=(2, 0, 0)))
    assert before["preset"] == after["preset"] == "fast"
    assert not np.array_equal(by_preset, by_file)


def test_register_takes_an_empty_lesion_mask_for_no_lesion_and_a_mask_on_any_grid(dataset, tmp_path, write_image):
    scan = nib.load(dataset.root / "sub-01/anat/sub-01_T1w.nii.gz")
    lesion = np.zeros(scan.shape, np.uint8)
    lesion[4:12, 14:20, 8:16] = 1
    own = nib.Nifti1Image(lesion, scan.affine)
    turned = own.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
    masks = {"empty": nib.Nifti1Image(0 * lesion, scan.affine), "own": own, "turned": turned}
    results = {"none": registered(dataset, tmp_path / "none", "--engine", "affine")}
    for name, mask in masks.items():
        path = write_image(np.asarray(mask.dataobj), tmp_path / f"{name}.nii.gz", mask.affine)
        results[name] = registered(dataset, tmp_path / name, "--engine", "affine", "--lesion-mask", path)
    assert {name: record["lesion_mask"] for name, (record, _) in results.items()} == {
        "none": False, "empty": False, "own": True, "turned": True,
    }  # fmt: skip
    images = {name: image for name, (_, image) in results.items()}
    np.testing.assert_array_equal(images["empty"], images["none"])
    np.testing.assert_array_equal(images["turned"], images["own"])
    assert not np.array_equal(images["own"], images["none"])


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"--settings": "{unknown}", "--engine": "syn"}, r"no setting iteration: choose one of metric, sampling, "),
        ({"--fixed": "absent.nii.gz"}, r"absent.nii.gz .*no such file"),
        ({"--out": "{atlas}/below"}, r"below cannot be written"),
        ({"--preset": "nonsense"}, r"affine has no preset nonsense"),
        ({"--moving-labels": "{small}"}, r"small.nii.gz .*expected the same grid"),
        ({"--fixed-mask": "{zero}"}, r"zero.nii.gz .*is empty"),
    ],
)
def test_register_refuses_bad_input_in_one_line(dataset, tmp_path, capsys, write_image, change, pattern):
    files = {
        "atlas": dataset.atlas,
        "small": write_image(np.ones((9, 9, 9), np.int16), tmp_path / "small.nii.gz"),
        "zero": write_image(np.zeros((24, 28, 24), np.uint8), tmp_path / "zero.nii.gz"),
        "unknown": tmp_path / "unknown.json",
    }
    files["unknown"].write_text('{"iteration": [2, 0, 0]}')
    options = {"--fixed": str(dataset.atlas), "--moving": str(dataset.root / "sub-01/anat/sub-01_T1w.nii.gz")}
    options |= {"--out": str(tmp_path / "pair"), "--engine": "affine"}
    options |= {key: value.format(**files) for key, value in change.items()}
    assert nio.main(["register", "--skull-stripped", *[word for pair in options.items() for word in pair]]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert said.startswith("nio register: error: ")
    assert re.search(pattern, said)
    assert not (tmp_path / "pair").exists()


def test_an_error_of_the_system_is_one_line(tmp_path, capsys):
    assert exit_status("nio", lambda: (tmp_path / "absent").stat().st_size) == 1
    assert capsys.readouterr().err == f"nio: error: {tmp_path / 'absent'}: No such file or directory\n"


def test_training_refuses_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert nio.main(["train", "--labels", str(tmp_path), "--out", str(tmp_path / "file/below")]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"nio train: error: The output folder .*below cannot be written .*\n", said)


def test_weights_are_converted_and_shown(real_data, tmp_path, capsys):
    target = tmp_path / "disp.safetensors"
    assert nio.main(["weights", "convert", str(real_data / "weights/LapIRN_disp_fea7.pth"), str(target)]) == 0
    capsys.readouterr()
    assert nio.main(["weights", "info", str(target)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["network"]["variant"] == "disp"
    assert shown["orientation"] == "LIA"


def test_weights_refuse_a_file_that_holds_no_weights(tmp_path, capsys):
    (tmp_path / "text.pth").write_text("no weights")
    assert nio.main(["weights", "convert", str(tmp_path / "text.pth"), str(tmp_path / "out.safetensors")]) == 1
    assert nio.main(["weights", "info", str(tmp_path / "absent.safetensors")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "text.pth cannot be read" in said[0]
    assert "absent.safetensors: no such weights file" in said[1]
    assert not (tmp_path / "out.safetensors").exists()


def test_nipype_registers_and_propagates(dataset, tmp_path):
    from nipype.pipeline.engine import Node, Workflow

    from nio_pydra.interfaces import NIOPropagateLabels, NIORegistration

    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    register = Node(NIORegistration(engine="affine", skull_stripped=True), name="register")
    register.inputs.fixed = dataset.atlas
    register.inputs.moving = scan
    back = Node(NIOPropagateLabels(labels=dataset.atlas_labels, reference=scan), name="back")
    flow = Workflow(name="flow", base_dir=tmp_path)
    flow.config["execution"] = {"remove_unnecessary_outputs": "false"}
    flow.connect(register, "inverse_xfm", back, "transform")
    flow.run()
    found = nib.load(tmp_path / "flow/back/labels.nii.gz")
    truth = nib.load(dataset.derivatives / "sub-01/anat/sub-01_desc-malf_dseg.nii.gz").get_fdata()
    np.testing.assert_allclose(found.affine, nib.load(scan).affine)
    assert np.mean(found.get_fdata()[truth > 0] == truth[truth > 0]) > 0.9
    assert json.loads((tmp_path / "flow/register/record.json").read_text())["engine"] == "affine"


def test_nipype_shows_the_sentence_of_a_bad_input(dataset, tmp_path, monkeypatch):
    from nio_pydra.errors import InputError
    from nio_pydra.interfaces import NIORegistration

    monkeypatch.chdir(tmp_path)
    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    scan.write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        NIORegistration(fixed=dataset.atlas, moving=scan, engine="affine", skull_stripped=True).run()


@pytest.mark.parametrize("option", ["--moving-labels", "--moving-mask", "--moving"])
@pytest.mark.parametrize("name", ["labels.nii.gz", "warped.nii.gz"])
def test_register_does_not_write_over_its_own_inputs(dataset, tmp_path, capsys, option, name):
    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    given = {"--moving-labels": dataset.derivatives / "sub-01/anat/sub-01_desc-malf_dseg.nii.gz"}.get(option, scan)
    own = given.rename(tmp_path / name)
    (tmp_path / "link.nii.gz").symlink_to(own)
    before = own.read_bytes()
    options = {"--fixed": dataset.atlas, "--moving": scan, option: tmp_path / "link.nii.gz", "--out": tmp_path}
    command = ["register", "--skull-stripped", "--engine", "affine"]
    assert nio.main([*command, *(str(word) for pair in options.items() for word in pair)]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"nio register: error: \S+{name} would be overwritten, but \S+ is an input: .*\n", said)
    assert own.read_bytes() == before
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize("name", ["labels.nii.gz", "record.json", "warped.nii.gz", "forward_xfm.h5"])
def test_register_deletes_and_replaces_nothing_but_earlier_results(dataset, tmp_path, capsys, name):
    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    command = ["register", "--skull-stripped", "--engine", "affine", "--fixed", str(dataset.atlas)]
    command += ["--moving", str(scan), "--out", str(tmp_path / "pair")]
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / name).write_text("[]")
    assert nio.main(command) == 1
    assert f"{name} is not of an earlier registration: choose another output folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "pair").iterdir()] == [name]
    (tmp_path / "pair" / name).unlink()
    assert nio.main(command) == 0
    (tmp_path / "pair/labels.nii.gz").write_text("of an earlier registration")
    assert nio.main(command) == 0
    assert not (tmp_path / "pair/labels.nii.gz").exists()


def test_weights_are_not_converted_onto_a_file_that_exists(tmp_path, capsys):
    (tmp_path / "a.pth").write_text("weights")
    assert nio.main(["weights", "convert", str(tmp_path / "a.pth"), str(tmp_path / "a.pth")]) == 1
    assert "a.pth exists: choose another name" in capsys.readouterr().err
    assert (tmp_path / "a.pth").read_text() == "weights"


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--bids", "raw", "--out", "raw"], r"The output folder raw is --bids"),
        (["--bids", "raw", "-d", "x=manual", "--out", "manual"], r"The output folder manual is -d x=manual"),
        (["--bids", "raw", "-d", "raw=manual", "--out", "new"], r"raw stands for the dataset itself"),
        (["--bids", "raw", "--weights", "w/weights.safetensors", "--out", "w"], r"would be overwritten, but"),
        (["--bids", "raw", "--out", "w"], r"w/weights.safetensors is not of an earlier run of nio train"),
    ],
)
def test_training_does_not_write_over_what_it_did_not_make(dataset, capsys, monkeypatch, arguments, pattern):
    monkeypatch.chdir(dataset.root.parent)
    weights = dataset.root.parent / "w/weights.safetensors"
    weights.parent.mkdir()
    weights.write_text("weights")
    assert nio.main(["train", *arguments]) == 1
    assert re.search(pattern, capsys.readouterr().err)
    assert weights.read_text() == "weights"
    assert not (dataset.root.parent / "new").exists()


def test_the_demo_does_not_write_into_a_dataset_that_is_not_its_own(dataset, capsys):
    dataset.root.rename(dataset.root.with_name("bids"))
    before = {path: path.stat().st_mtime_ns for path in dataset.root.with_name("bids").rglob("*")}
    assert nio.main(["demo", "--out", str(dataset.root.parent)]) == 1
    assert "holds the dataset of a program that it does not name" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in dataset.root.with_name("bids").rglob("*")} == before


def test_an_fmriprep_that_builds_its_workflow_in_another_way_is_refused(capsys, monkeypatch):
    run = pytest.importorskip("fmriprep.cli.run", reason="fMRIPrep is not installed")
    monkeypatch.setattr(run, "main", lambda: pytest.fail("fMRIPrep ran with its own registration"))
    assert nio.main(["fmriprep", "--engine", "affine", "--", "data", "out", "participant"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"nio fmriprep: error: fMRIPrep [\d.]+ builds its workflow in another way .*\n", said)


def test_where_fmriprep_is_absent_a_sentence_says_so(capsys, monkeypatch):
    for name in ("fmriprep", "fmriprep.cli"):
        monkeypatch.setitem(sys.modules, name, None)
    assert nio.main(["fmriprep", "--", "data", "out", "participant"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"nio fmriprep: error: fMRIPrep 25\.1 or newer is needed .*\n", said)
