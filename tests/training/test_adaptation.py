"""Adaptation of a network to an atlas and scans: it helps scans held out, resumes exactly, says what it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.errors import InputError
from nio_pydra.networks import LapIRN, LapIRNConfig, load_network, save_network
from nio_pydra.networks.checkpoints import adaptation_of, weights_digest
from nio_pydra.networks.ulae import ULAE, ULAEConfig
from nio_pydra.optimize.problem import Objective, Problem
from nio_pydra.spatial.itk import write_h5
from nio_pydra.spatial.transforms import Transform
from nio_pydra.training import adaptation
from nio_pydra.training.adaptation import AdaptationSettings, Aligned, adapt, held_out_of

SPACE = {"orientation": "LIA", "voxel_size_mm": 6.0, "intensity_scaling": "percentile"}
QUICK = AdaptationSettings(iterations=(12, 6, 0), learning_rate=2e-3, objective=Objective(weight=0.1, window=3))
RUNTIME = Runtime(device="cpu", precision="float32", threads=2)


def small_network() -> LapIRN:
    torch.manual_seed(0)
    return LapIRN(LapIRNConfig(encoder_channels=6, channels=6, head_channels=(6, 6, 6)))


@pytest.fixture
def weights(tmp_path):
    save_network(small_network(), tmp_path / "base.safetensors", {**SPACE, "training_data": "nothing"})
    return tmp_path / "base.safetensors"


@pytest.fixture
def scans(make_dataset, tmp_path):
    """The tiny dataset's atlas, and five scans that are shifted by 6 to 18 mm."""
    dataset = make_dataset(tmp_path)
    affine = tmp_path / "identity.h5"
    write_h5(Transform((np.eye(4),)), affine)
    shifts = (6.0, 9.0, 12.0, 15.0, 18.0)
    paths = [dataset.add(f"sub-{number:02d}", shift) for number, shift in enumerate(shifts)]
    return ScanFiles(dataset.atlas), [Aligned(ScanFiles(path), affine) for path in paths]


def run(scans, weights, out, settings=QUICK, log=str, count=5):
    return adapt(scans[0], scans[1][:count], out, settings, weights=weights, runtime=RUNTIME, log=log)


def test_adaptation_helps_the_scan_that_is_held_out_and_says_what_it_did(scans, weights, tmp_path):
    adapted = run(scans, weights, tmp_path / "out")
    found = adaptation_of(adapted)
    assert found["score"] > found["score_before"] + 0.01
    assert found["from"] == {"name": "base.safetensors", "sha256": weights_digest(weights)}
    assert (found["scans"], found["held_out"]) == (5, 1)
    assert found["atlas"]["name"] == "atlas.nii.gz" and found["steps"][2] == 0 < found["steps"][0] <= 12
    assert load_network(adapted)[1]["training_data"] == "nothing"
    assert adaptation_of(weights) is None


def test_the_loss_on_the_held_out_scan_falls(scans, weights, tmp_path):
    """The objective of NIO itself, measured apart from the code that adapts."""
    adapted = run(scans, weights, tmp_path / "out")
    problem = adaptation._problems(*scans, small_network(), SPACE, adaptation.BRAIN, torch.device("cpu"))[-1]

    def loss(path):
        with torch.no_grad():
            field = load_network(path)[0].predict(problem.moving, problem.fixed)
            return float(problem.loss(field, QUICK.objective))

    assert loss(adapted) < loss(weights) - 0.01


@pytest.mark.parametrize("words", ["stage 1 step 12/", "stage 2 before"])
def test_a_killed_adaptation_resumes_to_the_same_weights(scans, weights, tmp_path, monkeypatch, words):
    monkeypatch.setattr(adaptation, "EVERY", 4)

    def killed(line):
        if words in line:
            raise KeyboardInterrupt

    whole = run(scans, weights, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(scans, weights, tmp_path / "cut", log=killed)
    lines: list[str] = []
    cut = run(scans, weights, tmp_path / "cut", log=lines.append)
    assert any("resuming" in line for line in lines)
    ours, theirs = (load_network(path)[0].state_dict() for path in (whole, cut))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert adaptation_of(whole) == adaptation_of(cut)
    before = load_network(weights)[0].state_dict()
    assert not all(torch.equal(ours[name], before[name]) for name in ours)


def test_a_level_ends_when_the_held_out_scan_gains_no_more(scans, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "EVERY", 1)
    lines: list[str] = []
    harmful = replace(QUICK, learning_rate=0.5, patience=2)
    adapted = run(scans, weights, tmp_path / "out", harmful, lines.append)
    assert sum("validation:" in line for line in lines) < 18
    found = adaptation_of(adapted)
    assert found["score"] >= found["score_before"]  # the best weights are kept


def test_the_budget_ends_it(scans, weights, tmp_path):
    lines: list[str] = []
    run(scans, weights, tmp_path / "out", replace(QUICK, minutes=1e-6), lines.append)
    assert not any("step 2/" in line or "stage 2" in line for line in lines)


def test_one_scan_is_learned_from_without_a_score(scans, weights, tmp_path):
    adapted = run(scans, weights, tmp_path / "out", count=1)
    found = adaptation_of(adapted)
    assert found["held_out"] == 0 and "score" not in found and found["steps"] == [12, 6, 0]


def test_a_fifth_is_held_out():
    assert [held_out_of(count) for count in (1, 2, 5, 10, 15, 30)] == [0, 1, 1, 2, 3, 6]


def test_other_networks_and_no_scans_are_refused(scans, tmp_path):
    save_network(ULAE(ULAEConfig()), tmp_path / "ulae.safetensors", SPACE)
    with pytest.raises(InputError, match="ulae: only LapIRN can be adapted"):
        run(scans, tmp_path / "ulae.safetensors", tmp_path / "out")
    with pytest.raises(InputError, match="no scan to adapt"):
        run(scans, None, tmp_path / "out", count=0)


@pytest.mark.parametrize("change", [{"iterations": (0, 0, 0)}, {"iterations": (1, 2)}, {"minutes": 0.0}])
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        AdaptationSettings(**change)


def test_pairs_of_one_fixed_image_have_the_losses_of_pairs_of_their_own():
    fixed, first, second = (torch.rand(1, 1, 16, 16, 16) for _ in range(3))
    weights = torch.rand(1, 1, 16, 16, 16)
    field = 0.05 * torch.randn(1, 3, 16, 16, 16)
    shared = Problem(fixed, first, moving_weights=weights)
    shared.loss(field, Objective())
    for moving, own in ((second, None), (second, weights)):
        expected = Problem(fixed, moving, moving_weights=own).loss(field, Objective())
        assert torch.equal(shared.with_moving(moving, own).loss(field, Objective()), expected)
