"""Training: images made from label maps, exact resume, and that it learns at all."""

from __future__ import annotations

import argparse
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from nio_pydra.cli import train as train_command
from nio_pydra.errors import InputError
from nio_pydra.metrics import dice
from nio_pydra.networks import LapIRN, LapIRNConfig, load_network
from nio_pydra.training.loop import train
from nio_pydra.training.maps import GRID, TISSUES, prepare_label_maps
from nio_pydra.training.objective import objective
from nio_pydra.training.pairs import SyntheticPairs
from nio_pydra.training.settings import Stage, TrainingSettings
from nio_pydra.training.synthesis import (
    Anatomy,
    Pose,
    SynthesisSettings,
    draw_contrast,
    draw_pose,
    synthesise,
)
from nio_pydra.training.validation import Validation

SIZE = 48
SETTINGS = SynthesisSettings(warp_mm=1.0, fine_warp_mm=0.5, pose_mm=1.0, ventricles_mm=1.0)
T1 = np.array([tissue.t1 for tissue in TISSUES], np.float32)
STILL = Pose(np.eye(3), np.zeros(3))


def little_brain(size: int = SIZE, shift: float = 0.0, stretch: float = 1.0) -> np.ndarray:
    """Shells of fluid, cortex and white matter around two ventricles."""
    axis = np.arange(size) - (size - 1) / 2
    x, y, z = np.meshgrid(axis - shift, axis * stretch, axis, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2) / size
    labels = np.zeros((size,) * 3, np.int16)
    for limit, left, right in ((0.47, 24, 24), (0.42, 3, 42), (0.32, 2, 41), (0.12, 4, 43)):
        labels[radius < limit] = np.where(x < 0, left, right)[radius < limit]
    return labels


@pytest.fixture
def maps(tmp_path):
    paths = []
    for number, (shift, stretch) in enumerate([(0, 1), (1.5, 1.1), (-1.5, 0.95), (1, 1.15), (-1, 1.05), (2, 1)]):
        paths.append(tmp_path / f"map{number}.npz")
        np.savez(paths[-1], labels=little_brain(shift=shift, stretch=stretch))
    return paths


def small(**changes) -> TrainingSettings:
    network = LapIRNConfig(encoder_channels=6, channels=6, head_channels=(6, 6, 6))
    return replace(TrainingSettings(network=network, synthesis=SETTINGS), **changes)


def test_an_image_without_changes_shows_its_label_map():
    labels = little_brain()
    quiet = SynthesisSettings(bias=0, noise=0, texture=0, gamma=0, blur_voxels=0)
    image, moved = synthesise(Anatomy(labels), T1, STILL, np.random.default_rng(0), quiet, plain=True)
    assert np.array_equal(moved[0, 0].numpy(), labels)
    image = image[0, 0].numpy()
    mean = {label: image[labels == label].mean() for label in (2, 41, 3, 42, 4, 43)}
    assert min(mean[2], mean[41]) > max(mean[3], mean[42]) > max(mean[4], mean[43]) > 0
    assert image.max() == 1 and (image[labels == 0] > 0).mean() < 0.05 and (image[labels == 2] > 0).all()


def test_an_image_depends_on_its_seed_alone_and_seeds_differ():
    anatomy = Anatomy(little_brain())

    def draw(seed):
        rng = np.random.default_rng(seed)
        return synthesise(anatomy, draw_contrast(rng, SETTINGS), draw_pose(rng, SETTINGS), rng, SETTINGS)

    (a, la), (b, lb), (c, lc) = draw(3), draw(3), draw(4)
    assert torch.equal(a, b) and torch.equal(la, lb)
    assert not torch.equal(a, c) and not torch.equal(la, lc)
    assert a.min() == 0 and a.max() == 1 and (a == 0).any()


def test_a_pose_moves_the_brain_by_its_millimetres():
    labels = little_brain()
    pose = Pose(np.eye(3), np.array([3.0, 0.0, -2.0]))
    _, moved = synthesise(Anatomy(labels), T1, pose, np.random.default_rng(0), SETTINGS, plain=True)
    expected = np.roll(labels, (-3, 2), axis=(0, 2))  # the image looks 3 mm further along the first axis
    assert np.array_equal(moved[0, 0].numpy()[4:-4, 4:-4, 4:-4], expected[4:-4, 4:-4, 4:-4])


def test_an_image_at_two_millimetres_is_the_pooled_one():
    anatomy = Anatomy(little_brain())
    quiet = SynthesisSettings(bias=0, noise=0, texture=0, gamma=0, blur_voxels=0)
    fine, coarse = (
        synthesise(anatomy, T1, STILL, np.random.default_rng(0), quiet, spacing=spacing, plain=True)[0]
        for spacing in (1, 2)
    )
    # Voxels of 2 mm span the same corners, so they lie between the fine ones: compare at one size.
    pooled = torch.nn.functional.interpolate(fine, coarse.shape[2:], mode="trilinear", align_corners=True)
    assert np.corrcoef(pooled.flatten(), coarse.flatten())[0, 1] > 0.98


def test_warps_do_not_fold_and_change_the_ventricles():
    labels = little_brain()
    sizes = {
        int((synthesise(Anatomy(labels), T1, STILL, np.random.default_rng(s), SynthesisSettings())[1] % 39 == 4).sum())
        for s in range(4)
    }  # 4 and 43 are the same modulo 39
    assert len(sizes) == 4 and min(sizes) > 0


def test_a_stream_can_be_entered_anywhere(maps):
    whole = iter(SyntheticPairs(maps, SETTINGS, spacing=2, seed=5))
    late = iter(SyntheticPairs(maps, SETTINGS, spacing=2, seed=5, start=4))
    pairs = [next(whole) for _ in range(8)]
    for moving, fixed in pairs[4:]:  # into the next group
        m, f = next(late)
        assert torch.equal(m, moving) and torch.equal(f, fixed)
    assert not torch.equal(pairs[0][0], pairs[6][0])


def test_a_crop_of_everything_gives_the_loss_of_everything(maps):
    torch.manual_seed(0)
    network = LapIRN(small().network)
    pair = next(iter(SyntheticPairs(maps, SETTINGS, spacing=2, seed=1)))
    whole, crop = (
        objective(network, pair, Stage(2, 1, crop=edge), 0.4, np.random.default_rng(0)).item() for edge in (0, 400)
    )
    assert crop == pytest.approx(whole, rel=1e-4)
    part = objective(network, pair, Stage(2, 1, crop=16), 0.4, np.random.default_rng(0))
    part.backward()
    assert np.isfinite(part.item()) and part.item() != pytest.approx(whole, rel=1e-4)
    assert network.levels[1].down.weight.grad.abs().sum() > 0 and network.levels[0].down.weight.grad is None


def test_a_killed_run_resumes_to_the_same_weights(maps, tmp_path):
    settings = small(stages=(Stage(1, 3), Stage(2, 5, crop=16)), save_every=2, validate_every=4, held_out=2)

    def killed(line):
        if "stage 2 step 4" in line:
            raise KeyboardInterrupt

    train(settings, maps, tmp_path / "whole", background=False, log=str)
    with pytest.raises(KeyboardInterrupt):
        train(settings, maps, tmp_path / "cut", background=False, log=killed)
    lines: list[str] = []
    train(settings, maps, tmp_path / "cut", background=False, log=lines.append)
    assert lines[0] == "resuming at stage 2, step 2"
    whole, cut = (load_network(tmp_path / run / "weights.safetensors")[0].state_dict() for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    with pytest.raises(InputError, match="other settings"):
        train(replace(settings, seed=1), maps, tmp_path / "cut", background=False, log=str)


def test_a_short_training_lowers_the_loss_on_unseen_pairs(maps, tmp_path):
    stage = Stage(1, 120, 3e-3)
    network = train(
        small(stages=(stage,), save_every=120, validate_every=120), maps, tmp_path, background=False, log=str
    )
    torch.manual_seed(0)
    stream = iter(SyntheticPairs(maps[3:], SETTINGS, spacing=2, seed=99))
    pairs = [next(stream) for _ in range(12)]
    rng = np.random.default_rng(0)
    with torch.no_grad():
        before, after = (
            np.mean([objective(n, pair, stage, 0.4, rng).item() for pair in pairs])
            for n in (LapIRN(small().network), network)
        )
    assert after < before - 0.01
    _, metadata = load_network(tmp_path / "weights.safetensors")
    assert metadata["orientation"] == "LIA" and metadata["intensity_scaling"] == "percentile"
    assert Validation(maps[3:], SETTINGS, 2).overlap(network, 1) > 0.5


def test_label_maps_are_brought_to_one_space_once(tmp_path):
    for name, labels in (
        ("a", little_brain(64)),
        ("b", np.pad(little_brain(64), ((20, 0), (0, 12), (5, 0)))),
    ):
        # Written with other axes than the network's: first to the right, then up.
        nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1, 1, 1])), tmp_path / f"{name}.nii.gz")
    paths = prepare_label_maps(tmp_path, tmp_path / "cache")
    a, b = (np.load(path)["labels"] for path in paths)
    assert a.shape == b.shape == GRID
    assert min(dice(a, b).values()) > 0.9
    stamp = paths[1].stat().st_mtime_ns
    assert prepare_label_maps(tmp_path, tmp_path / "cache")[1].stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="at least two"):
        prepare_label_maps(tmp_path / "nowhere", tmp_path / "cache")


@pytest.mark.parametrize("text", ["1:2:3", "1:x:0.1:0"])
def test_a_schedule_that_cannot_be_read_is_refused(text, tmp_path):
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    args = parser.parse_args(["--labels", str(tmp_path), "--out", str(tmp_path / "out"), "--stage", text])
    with pytest.raises(InputError, match="LEVEL:STEPS:RATE:CROP"):
        train_command.main(args)
