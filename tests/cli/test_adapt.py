"""`nio adapt` and `nio-pydra --adapt`: from a dataset to adapted weights, and derivatives made with them."""

import json
import logging
import re
import shutil

import pytest
import torch

from nio_pydra.cli import bids_app, nio
from nio_pydra.engines.methods import choose_method, warn_if_adapted_to_others
from nio_pydra.errors import InputError
from nio_pydra.networks import LapIRN, LapIRNConfig, save_network
from nio_pydra.networks.checkpoints import adaptation_of, weights_digest
from nio_pydra.networks.ulae import ULAE, ULAEConfig
from nio_pydra.workflows.pydra_private import stored_results

SPACE = {"orientation": "LIA", "voxel_size_mm": 6.0, "intensity_scaling": "percentile"}
NAMES = ("sub-01", "sub-02", "sub-03")
WEIGHTS = "weights/adapted_Tiny.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a small LapIRN for images of 6 mm, which takes a second for a dataset."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "base.safetensors"
    network = LapIRN(LapIRNConfig(encoder_channels=6, channels=6, head_channels=(6, 6, 6)))
    save_network(network, path, {**SPACE, "training_data": "nothing"})
    return path


def app(dataset, out, *more):
    return bids_app.main(dataset.command(out, "--engine", "nio_m", *map(str, more)))


def adapt(dataset, out, *more):
    words = [word for word in dataset.command(out) if word not in ("participant", "--engine", "affine")]
    return nio.main(["adapt", *words, *map(str, more)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_dataset, weights):
    """A dataset, and the output folder of a run that adapted."""
    folder = tmp_path_factory.mktemp("adapted")
    dataset = make_dataset(folder, NAMES)
    assert app(dataset, folder / "out", "--adapt", "--weights", weights) == 0
    return dataset, folder / "out"


def record_of(out, scan="sub-01", atlas="Tiny"):
    return json.loads((out / scan / "anat" / f"{scan}_space-{atlas}_desc-nio_record.json").read_text())


def test_the_app_adapts_and_registers_with_the_adapted_preset(finished, weights, bids_errors):
    out = finished[1]
    adapted = adaptation_of(out / WEIGHTS)
    assert (adapted["scans"], adapted["held_out"]) == (3, 1)
    assert adapted["from"]["sha256"] == weights_digest(weights)
    for scan in NAMES:
        record = record_of(out, scan)
        assert (record["engine"], record["preset"]) == ("nio_m", "adapted")
        assert not any(record["settings"]["network"]["iterations"]) and record["settings"]["field"]["iterations"] > 0
        digest = weights_digest(out / WEIGHTS)
        assert record["weights"] == {
            "name": "adapted_Tiny.safetensors",
            "sha256": digest,
            "training_data": "nothing; adapted to 3 scans and to atlas.nii.gz",
            "adapted": adapted,
        }
    assert bids_errors(out) == []


def test_description_and_methods_text_name_the_adapted_weights(finished):
    out = finished[1]
    described = json.loads((out / "dataset_description.json").read_text())["GeneratedBy"][0]["Description"]
    assert weights_digest(out / WEIGHTS) in described and "adapted to 3 scans and atlas.nii.gz" in described
    text = (out / "logs/CITATION.md").read_text()
    steps = " + ".join(map(str, adaptation_of(out / WEIGHTS)["steps"]))
    assert f"(adapted_Tiny.safetensors) had been adapted to 2 scans and the image atlas.nii.gz by {steps} steps" in text
    assert "kept that aligned 1 further scan best" in text
    assert "computed by LapIRN, with instance optimisation of the displacement field" in text
    assert "optimised on the pair" not in text


def test_a_second_run_uses_the_weights_of_the_first(finished, weights, capsys, tmp_path):
    dataset, out = finished
    shutil.copytree(out, tmp_path / "out")
    before = (tmp_path / "out" / WEIGHTS).read_bytes()
    assert app(dataset, tmp_path / "out", "--adapt", 2, "--weights", weights, "--participant-label", "01") == 0
    said = capsys.readouterr().out
    assert "weights of an earlier run, adapted to 3 scans" in said and "not to 2 with 0 as asked for now" in said
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == before


def test_weights_in_the_output_folder_that_come_from_others_are_refused(finished, capsys):
    dataset, out = finished
    assert app(dataset, out, "--adapt") == 1
    assert "was adapted from other weights or to another atlas" in capsys.readouterr().err


def test_a_file_of_adapted_weights_is_used_and_another_atlas_is_said(finished, tmp_path, capsys):
    dataset, out = finished
    other = dataset.root / "sub-03/anat/sub-03_T1w.nii.gz"
    arguments = ("--atlas", other, "--atlas-name", "Other", "--skull-stripped", "--participant-label", "02")
    assert app(dataset, tmp_path / "out", "--adapt", out / WEIGHTS, *arguments) == 0
    assert f"was adapted to atlas.nii.gz, another image than {other}" in capsys.readouterr().out
    assert not (tmp_path / "out/weights").exists()
    record = record_of(tmp_path / "out", "sub-02", "Other")
    assert record["preset"] == "adapted" and record["weights"]["sha256"] == weights_digest(out / WEIGHTS)
    (written,) = (tmp_path / "out/logs").glob("*.toml")  # with which the run can be repeated
    assert not re.search("^(weights|preset) =", written.read_text(), re.MULTILINE)
    assert re.search("^adapt = ", written.read_text(), re.MULTILINE)


def test_weights_that_do_not_fit_a_run_are_said(finished, weights, caplog, monkeypatch):
    dataset, out = finished
    monkeypatch.setattr(logging.getLogger("nio_pydra"), "propagate", True)

    def said(preset, file):
        caplog.clear()
        warn_if_adapted_to_others(choose_method("nio_m", preset, weights=file), [dataset.atlas])
        return caplog.text

    assert "made for adapted weights, and these are not" in said("adapted", weights)
    assert "made for adapted weights, and these are not" in said("adapted", None)
    assert said("fast", weights) == said("adapted", out / WEIGHTS) == ""


def test_one_pair_is_told_of_weights_adapted_to_another_image(finished, tmp_path, caplog, monkeypatch):
    dataset, out = finished
    monkeypatch.setattr(logging.getLogger("nio_pydra"), "propagate", True)
    other = dataset.root / "sub-02/anat/sub-02_T1w.nii.gz"
    words = ["register", "--fixed", other, "--moving", tmp_path / "absent.nii.gz", "--out", tmp_path / "pair"]
    words += ["--skull-stripped", "--preset", "adapted", "--weights", out / WEIGHTS, "--device", "cpu"]
    assert nio.main([str(word) for word in words]) == 1  # it is said before the work, which this pair ends at once
    assert f"was adapted to atlas.nii.gz, another image than {other}" in caplog.text


def test_a_comparison_tells_of_weights_adapted_to_another_image(finished, tmp_path, capsys, monkeypatch):
    def register_dataset(*args, **kwargs):
        raise InputError("that is far enough")

    dataset, out = finished
    monkeypatch.setattr("nio_pydra.workflows.dataset.register_dataset", register_dataset)
    other = dataset.root / "sub-02/anat/sub-02_T1w.nii.gz"
    words = ["compare", dataset.root, tmp_path / "out", "--engines", f"affine,lapirn@{out / WEIGHTS}"]
    words += ["--atlas", other, "--atlas-name", "Other", "--atlas-labels", dataset.atlas_labels, "--skull-stripped"]
    words += ["-d", f"manual={dataset.derivatives}", "--labels-desc", "malf", "-w", tmp_path / "work"]
    assert nio.main([str(word) for word in words]) == 1
    shown = capsys.readouterr()
    assert f"was adapted to atlas.nii.gz, another image than {other}" in shown.out + shown.err


def affines(work):
    """Results of the task AffineAlign; workflows hold copies."""
    results = stored_results(work / "nio_pydra/pydra")
    return {path for path in results if path.match("python-*/*") and (path.parent / "affine.h5").is_file()}


def test_the_command_and_the_app_share_their_affines(finished, weights, tmp_path, capsys):
    dataset, out = finished
    work = out.parent / "work"
    before = affines(work)
    target = tmp_path / "adapted.safetensors"
    options = ("--weights", weights, "--n-scans", 2, "--iterations", 4, 2, 0)
    assert adapt(dataset, target, *options, "-w", work) == 0
    assert adaptation_of(target)["scans"] == 2 and adaptation_of(target)["from"]["name"] == "base.safetensors"
    assert len(before) == 3 and affines(work) == before  # once by the adaptation, and not again by the registration
    capsys.readouterr()
    assert adapt(dataset, target, *options) == 1
    assert f"{target} exists: choose another name" in capsys.readouterr().err


def test_scans_that_are_damaged_too_few_or_only_one_are_said(make_dataset, weights, tmp_path, capsys):
    dataset = make_dataset(tmp_path, NAMES[:2])
    (dataset.root / "sub-02/anat/sub-02_T1w.nii.gz").write_bytes(b"nothing")
    out = tmp_path / "a.safetensors"
    assert adapt(dataset, out, "--weights", weights, "--n-scans", 3, "--iterations", 2, 0, 0) == 0
    said = capsys.readouterr().out
    assert "2 participants: all of them are used, not the 3 asked for" in said
    assert "sub-02 is left out: " in said and "one scan only: none is held out" in said
    assert adaptation_of(out)["scans"] == 1
    assert app(dataset, tmp_path / "out", "--adapt", "--weights", weights, "--participant-label", "01") == 1
    assert "has one participant: adapt once to several" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--adapt", "no.safetensors"), "no.safetensors: no such weights file"),
        (("--adapt", "x.safetensors", "--weights", "y.safetensors"), "name weights both: leave out one"),
        (("--adapt", "--engine", "affine"), "needs an engine with a network, but affine has none"),
        (("--adapt", "--engine", "ulae"), "needs LapIRN, but found weights of ulae"),
        (("--adapt", "--boilerplate-only"), "--boilerplate-only computes nothing"),
        (("--adapt", "two atlases"), "takes one atlas"),
    ],
)
def test_what_cannot_be_adapted_is_refused(dataset, tmp_path, capsys, options, sentence):
    if "two atlases" in options:
        second = tmp_path / "second.nii.gz"
        shutil.copy(dataset.atlas, second)
        atlases = (dataset.atlas, "--atlas-name", "Tiny", "--atlas", second, "--atlas-name", "Second")
        labels = ("--atlas-labels", dataset.atlas_labels) * 2
        options = ("--adapt", "--atlas", *atlases, *labels, "--skull-stripped")
    assert app(dataset, tmp_path / "out", *options) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out/weights").exists()


def test_weights_of_another_architecture_are_refused_before_any_work(dataset, tmp_path, capsys):
    save_network(ULAE(ULAEConfig()), tmp_path / "ulae.safetensors", SPACE)
    out = tmp_path / "a.safetensors"
    assert adapt(dataset, out, "--weights", tmp_path / "ulae.safetensors") == 1
    assert "needs LapIRN, but found weights of ulae" in capsys.readouterr().err
    assert not out.exists() and not (tmp_path / "work/nio_pydra/pydra").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--worker", "slurm"), "submit the command itself as a job"),
        (("--stop-on-first-crash",), "--stop-on-first-crash has no meaning for nio adapt"),
        (("--budget", "-1"), "minutes is -1.0: expected a positive number"),
        (("--iterations", "0", "0", "0"), "not all zero"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(dataset, tmp_path, capsys, options, sentence):
    assert adapt(dataset, tmp_path / "a.safetensors", *options) == 1
    assert sentence in capsys.readouterr().err
