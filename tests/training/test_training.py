"""Training: images made from label maps, exact resume, and that it learns at all."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from nio_pydra.cli import train as train_command
from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.errors import ComputationError, InputError
from nio_pydra.losses import diffusion, lncc
from nio_pydra.metrics import dice
from nio_pydra.networks import LapIRN, LapIRNConfig, load_network, save_network
from nio_pydra.networks.ulae import ULAE, ULAEConfig
from nio_pydra.spatial.unit_grid import warp
from nio_pydra.training import loop
from nio_pydra.training.loop import train
from nio_pydra.training.maps import GRID, TISSUES, prepare_label_maps
from nio_pydra.training.objective import objective
from nio_pydra.training.pairs import GroupStream, ImagePair, RealImages, SyntheticImages, group_loader, pair_stream
from nio_pydra.training.scans import prepare_scans, read_scan_list
from nio_pydra.training.settings import Stage, TrainingSettings, default_settings, read_settings
from nio_pydra.training.synthesis import (
    Anatomy,
    Pose,
    SynthesisSettings,
    _positions,
    draw_contrast,
    draw_pose,
    synthesise,
)
from nio_pydra.training.validation import Score, Validation

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


def small(*, conditional: bool = False, **changes) -> TrainingSettings:
    network = LapIRNConfig(encoder_channels=6, channels=6, head_channels=(6, 6, 6), conditional=conditional)
    return TrainingSettings(**{"network": network, "synthesis": SETTINGS, **changes})


def run(settings: TrainingSettings, maps, out, log=str, **options):
    """Train without a second process."""
    source = SyntheticImages(maps, settings.synthesis, settings.held_out)
    return train(settings, source, out, workers=0, log=log, **options)


def run_until(settings: TrainingSettings, maps, out, words: str) -> None:
    """Train, and kill the run when its log says some words."""

    def killed(line):
        if words in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, maps, out, log=killed)


def run_whole_and_cut(settings: TrainingSettings, maps, folder, words: str) -> list[str]:
    """Train in one go (`whole`), and killed and resumed (`cut`); return what the resumed run said."""
    lines: list[str] = []
    run(settings, maps, folder / "whole")
    run_until(settings, maps, folder / "cut", words)
    run(settings, maps, folder / "cut", log=lines.append)
    return lines


def stream(maps, seed, start=0):
    return pair_stream(SyntheticImages(maps, SETTINGS), spacing=2, seed=seed, start=start)


def test_an_image_without_changes_shows_its_label_map():
    labels = little_brain()
    quiet = SynthesisSettings(bias=0, noise=0, texture=0, gamma=0, blur_voxels=0, thick_share=0)
    image, moved = synthesise(Anatomy(labels), T1, STILL, np.random.default_rng(0), quiet, plain=True)
    assert np.array_equal(moved[0, 0].numpy(), labels)
    image = image[0, 0].numpy()
    mean = {label: image[labels == label].mean() for label in (2, 41, 3, 42, 4, 43)}
    assert min(mean[2], mean[41]) > max(mean[3], mean[42]) > max(mean[4], mean[43]) > 0
    assert image.max() == 1 and (image[labels == 0] > 0).mean() < 0.05 and (image[labels == 2] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_pairs_made_in_processes_of_their_own_are_the_same_and_no_forks(maps, workers):
    source = SyntheticImages(maps, SETTINGS)
    loader = group_loader(GroupStream(source, spacing=2, seed=3), workers)
    assert {type(process).__name__ for process in loader._workers} == {"ForkServerProcess"}
    ahead, here = (pair_stream(source, spacing=2, seed=3, start=4, workers=n) for n in (workers, 0))
    for _ in range(9):  # of three groups
        assert torch.equal(next(ahead).moving, next(here).moving)


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
    quiet = SynthesisSettings(bias=0, noise=0, texture=0, gamma=0, blur_voxels=0, thick_share=0)
    fine, coarse = (
        synthesise(anatomy, T1, STILL, np.random.default_rng(0), quiet, spacing=spacing, plain=True)[0]
        for spacing in (1, 2)
    )
    # Voxels of 2 mm span the same corners, so they lie between the fine ones: compare at one size.
    pooled = torch.nn.functional.interpolate(fine, coarse.shape[2:], mode="trilinear", align_corners=True)
    assert np.corrcoef(pooled.flatten(), coarse.flatten())[0, 1] > 0.98


def test_warps_do_not_fold():
    anatomy = Anatomy(little_brain())
    for seed in range(4):
        grid, flipped = _positions(
            anatomy, STILL, np.random.default_rng(seed), SynthesisSettings(), anatomy.labels.shape, False
        )
        voxels = grid[0].flip(-1).numpy() * (SIZE - 1) / 2  # ordered D, H, W
        jacobian = np.stack(np.gradient(voxels, axis=(0, 1, 2)), axis=-1)
        assert (np.linalg.det(jacobian) * (-1 if flipped else 1) > 0).all()


def test_the_ventricles_grow_and_shrink():
    anatomy = Anatomy(little_brain())

    def size(seed, push):
        settings = SynthesisSettings(ventricles_mm=push)
        labels = synthesise(anatomy, T1, STILL, np.random.default_rng(seed), settings)[1]
        return int((labels % 39 == 4).sum())  # 4 and 43 are the same modulo 39

    changes = [size(seed, 6.0) / size(seed, 0.0) for seed in range(8)]
    assert min(changes) < 0.95 and max(changes) > 1.2


def test_a_stream_can_be_entered_anywhere(maps):
    whole, late = stream(maps, 5), stream(maps, 5, start=4)
    pairs = [next(whole) for _ in range(8)]
    for pair in pairs[4:]:  # into the next group
        again = next(late)
        assert torch.equal(again.moving, pair.moving) and torch.equal(again.fixed_labels, pair.fixed_labels)
    assert not torch.equal(pairs[0].moving, pairs[6].moving)


def test_a_crop_of_everything_gives_the_loss_of_everything(maps):
    torch.manual_seed(0)
    network = LapIRN(small().network)
    pair = next(stream(maps, 1))
    for weight in (0, 1):
        whole, crop = (
            objective(network, pair, Stage(2, 1, crop=edge), 0.4, np.random.default_rng(0), label_weight=weight).item()
            for edge in (0, 400)
        )
        assert crop == pytest.approx(whole, rel=1e-4)
    part = objective(network, pair, Stage(2, 1, crop=16), 0.4, np.random.default_rng(0))
    part.backward()
    assert np.isfinite(part.item()) and part.item() != pytest.approx(whole, rel=1e-4)
    assert network.levels[1].down.weight.grad.abs().sum() > 0 and network.levels[0].down.weight.grad is None
    speck = torch.zeros_like(pair.fixed)
    speck[..., 8:12, 8:12, 8:12] = 1  # no crop holds enough of such a brain
    assert np.isfinite(
        objective(network, replace(pair, fixed=speck), Stage(2, 1, crop=16), 0.4, np.random.default_rng(0)).item()
    )


@pytest.mark.parametrize("conditional", [False, True])
def test_a_killed_run_resumes_to_the_same_weights(maps, tmp_path, conditional):
    stages = (Stage(1, 3), Stage(2, 5, crop=0 if conditional else 16))
    settings = small(conditional=conditional, stages=stages, save_every=2, validate_every=4, held_out=2)

    lines = run_whole_and_cut(settings, maps, tmp_path, "stage 2 step 4")
    assert lines[0] == "resuming at stage 2, step 2"
    whole, cut = (load_network(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), cut[0].parameters(), strict=True))
    assert whole[1]["lambda"] == (None if conditional else 0.4)
    with pytest.raises(InputError, match="other settings"):
        run(replace(settings, seed=1), maps, tmp_path / "cut")
    with pytest.raises(InputError, match="other data"):
        run(settings, maps[:-1], tmp_path / "cut")


def test_a_network_without_levels_is_trained_as_a_whole_and_resumes_to_the_same_weights(maps, tmp_path):
    network = ULAEConfig(channels=2)
    stages = (Stage(3, 6, 1e-3, joint=True),)
    settings = default_settings(
        "ulae", network=network, stages=stages, synthesis=SETTINGS, save_every=2, validate_every=4, held_out=2,
        label_weight=1.0,
    )  # fmt: skip
    lines = run_whole_and_cut(settings, maps, tmp_path, "stage 1 step 4")
    assert lines[0] == "resuming at stage 1, step 2"
    whole, cut = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(value, cut["network"][name]) for name, value in whole["network"].items())
    torch.manual_seed(settings.seed)
    untrained = ULAE(network).state_dict()
    assert [name for name, value in whole["network"].items() if torch.equal(value, untrained[name])] == []
    loaded, metadata = load_network(tmp_path / "cut" / "weights.safetensors")
    assert isinstance(loaded, ULAE) and metadata["architecture"] == "ulae" and "trained_levels" not in metadata
    with pytest.raises(InputError, match="another shape"):
        run(small(stages=(Stage(1, 1),)), maps, tmp_path / "other", initial=tmp_path / "cut" / "weights.safetensors")


def test_the_loss_of_ulae_is_that_of_its_paper_halved(maps):
    settings = default_settings("ulae", network=ULAEConfig(channels=2))
    torch.manual_seed(0)
    network = ULAE(settings.network)
    torch.nn.init.normal_(network.decoders[2].field.weight, std=0.1)
    pair = next(pair_stream(SyntheticImages(maps, SETTINGS), spacing=1, seed=1))
    with torch.no_grad():
        loss = objective(network, pair, settings.stages[0], settings.smoothness, np.random.default_rng(0))
        field = network.predict(pair.moving, pair.fixed)
        warped = warp(pair.moving, field)
        paper = sum(lncc(pair.fixed, warped, window) / 2**i for i, window in enumerate((11, 9, 7))) + diffusion(field)
    assert diffusion(field) > 1e-3 and 2 * loss == pytest.approx(paper.item(), rel=1e-5)


def test_a_run_killed_before_the_first_checkpoint_of_a_stage_resumes_to_the_same_weights(maps, tmp_path):
    # The second stage trains the level of the first one on, and validates more often than it saves.
    settings = small(stages=(Stage(1, 3, 1e-2), Stage(1, 6, 1e-2)), save_every=4, validate_every=1, held_out=2)

    lines = run_whole_and_cut(settings, maps, tmp_path, "stage 2 step 3")
    assert lines[0] == "resuming at stage 2, step 0"
    whole, cut = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole["best"] == cut["best"]
    assert all(torch.equal(value, cut["network"][name]) for name, value in whole["network"].items())


@pytest.mark.parametrize("stages", [(Stage(2, 1),), (Stage(1, 1), Stage(3, 1))])
def test_a_level_above_one_that_was_never_trained_is_refused(maps, tmp_path, stages):
    with pytest.raises(InputError, match="was never trained"):
        run(small(stages=stages), maps, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "best", "exports"),
    [
        ((0.1, 0.2, 0.9, 0.3, 0.4), 1, 2),
        ((0.1, 0.9, 0.2, 0.3, 0.4), 0, 1),
        ((0.1, float("nan"), 0.2, float("nan"), 0.1), 1, 2),  # a first score that is no number blocks no later one
    ],
)
def test_the_best_weights_are_kept_and_trained_on(maps, tmp_path, monkeypatch, values, best, exports):
    scores = iter(values)  # unregistered, before training, then after steps 1 to 3

    class Scripted(Validation):
        def score(self, network, level=0):
            return Score("Dice", next(scores), 0.0)

    monkeypatch.setattr(loop, "Validation", Scripted)
    kept = []
    monkeypatch.setattr(loop._Training, "export", _noting(loop._Training.export, kept))
    network = run(small(stages=(Stage(1, 3),), validate_every=1, held_out=2), maps, tmp_path)
    assert len(kept) == exports
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"]
    stored = load_network(tmp_path / "weights.safetensors")[0].state_dict()
    name = "levels.0.encoder.0.weight"
    assert torch.equal(stored[name], kept[best][name]) and not torch.equal(stored[name], last[name])
    assert torch.equal(stored[name], network.state_dict()[name])


def test_a_training_that_diverges_stops_and_keeps_the_state_before(maps, tmp_path, monkeypatch):
    settings = small(stages=(Stage(1, 4),), save_every=2)
    losses = iter((1.0, 1.0, float("nan")))
    right = loop.objective

    def scripted(*arguments, **options):
        return right(*arguments, **options) * next(losses)

    monkeypatch.setattr(loop, "objective", scripted)
    with pytest.raises(ComputationError, match=r"diverged \(loss nan at step 3 of stage 1\).*lower learning rate"):
        run(settings, maps, tmp_path / "out")
    state = torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert all(torch.isfinite(values).all() for values in state["network"].values())


def test_held_out_brains_without_a_common_label_are_refused():
    volumes = [torch.full((1, 1, 8, 8, 8), float(k)) for k in (1, 2)]
    pair = ImagePair(*volumes, *volumes)
    source = SimpleNamespace(validation=lambda spacing: [pair])
    with pytest.raises(InputError, match="no label in common"):
        Validation(source, 2).score(None)


def _noting(export, kept):
    def noted(self, trained):
        kept.append({name: values.clone() for name, values in self.network.state_dict().items()})
        export(self, trained)

    return noted


def test_labels_that_overlap_lower_the_loss_by_their_weight_at_most(maps):
    torch.manual_seed(0)
    network = LapIRN(small().network)  # at first it moves nothing
    pair = next(stream(maps, 1))

    def added(pair):
        with torch.no_grad():
            values = [
                objective(network, pair, Stage(1, 1), 0.4, np.random.default_rng(0), label_weight=w) for w in (0, 2)
            ]
        return (values[1] - values[0]).item()

    same = replace(pair, moving_labels=pair.fixed_labels)
    assert 0 <= added(same) < 0.2 * added(pair) < 0.2 * 2
    assert added(replace(pair, moving_labels=None)) == 0
    assert added(replace(pair, moving_labels=torch.zeros_like(pair.moving_labels))) == 0


def test_a_flipped_brain_has_its_left_structures_on_the_left():
    anatomy, flips = Anatomy(little_brain()), set()
    for seed in range(6):
        _, labels = synthesise(anatomy, T1, STILL, np.random.default_rng(seed), SETTINGS)
        places = [torch.nonzero(labels[0, 0] == label)[:, 0].float().mean().item() for label in (2, 41)]
        assert places[0] < places[1]
        rng = np.random.default_rng(seed)
        flips.add(_positions(anatomy, STILL, rng, SETTINGS, anatomy.labels.shape, False)[1])
    assert flips == {True, False}


def test_a_short_training_lowers_the_loss_on_unseen_pairs(maps, tmp_path):
    settings = small(conditional=True, stages=(Stage(1, 120, 3e-3),), save_every=120, validate_every=120)
    network = run(settings, maps, tmp_path)
    torch.manual_seed(0)
    unseen = stream(maps[3:], 99)
    pairs = [next(unseen) for _ in range(12)]
    rng = np.random.default_rng(0)
    with torch.no_grad():
        before, after = (
            np.mean([objective(n, pair, settings.stages[0], 0.4, rng).item() for pair in pairs])
            for n in (LapIRN(settings.network), network)
        )
    assert after < before - 0.01
    _, metadata = load_network(tmp_path / "weights.safetensors")
    assert metadata["orientation"] == "LIA" and metadata["intensity_scaling"] == "percentile"


def test_curves_show_loss_and_validation_once_each_step(maps, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stages = (Stage(1, 2), Stage(2, 3, crop=16))
    settings = small(stages=stages, save_every=1, validate_every=2, held_out=2)

    run_until(settings, maps, tmp_path, "stage 2 step 2")
    run(settings, maps, tmp_path)
    curves = events.EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    steps = {tag: [event.step for event in curves.Scalars(tag)] for tag in curves.Tags()["scalars"]}
    assert steps["loss/level 1"] == [1, 2] and steps["loss/level 2"] == [3, 4, 5]
    assert steps["Dice/level 1"] == [2] and steps["folds in percent/level 2"] == [4, 5]


@pytest.mark.slow
def test_the_example_beats_the_affine_on_brains_it_never_saw(tmp_path):
    path = Path(__file__).parents[2] / "examples" / "train_tiny_network.py"
    spec = importlib.util.spec_from_file_location("train_tiny_network", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    before, after = example.main(tmp_path)
    assert after > before + 0.02


def test_weights_that_know_another_lambda_are_not_trained_on(maps, tmp_path):
    settings = small(conditional=True, stages=(Stage(1, 1),))
    save_network(LapIRN(settings.network), tmp_path / "w.safetensors", settings.metadata() | {"condition_scale": 0.2})
    with pytest.raises(InputError, match="lambda in a scale of its own"):
        run(settings, maps, tmp_path / "out", initial=tmp_path / "w.safetensors")
    assert not (tmp_path / "out").exists()  # so that another try is not told of other settings


def test_settings_survive_their_file_and_misspelt_ones_are_refused(tmp_path):
    settings = small(stages=(Stage(2, 7, 1e-3, joint=True),), seed=3, licence="CC0")
    settings.write(tmp_path / "settings.json")
    assert read_settings(tmp_path / "settings.json") == settings
    for text, message in (
        ("{", "is not JSON"),
        ('{"stage": []}', "has no stage; it has architecture, network, stages"),
        ('{"synthesis": {"blurr": 1}}', "SynthesisSettings has no blurr"),
        ('{"stages": [{"level": 4, "steps": 1}]}', "level is 4"),
        ('{"stages": [{"level": 1}]}', "cannot be used"),
        ('{"stages": [{"level": 1, "steps": 10.5}]}', "steps is 10.5: expected a whole number"),
        ('{"stages": [{"level": 2, "steps": 1, "crop": -4}]}', "a crop is a multiple of 4"),
        ('{"network": {"conditional": true}}', "whole images"),
        ('{"held_out": 1}', "held_out is 1"),
        ('{"seed": -1}', "seed is -1: expected 0 to 2147483646"),
        ('{"label_weight": Infinity}', "label_weight is inf"),
        ('{"precision": "bf16"}', "expected auto or float32"),
        ('{"synthesis": {"noise": -1}}', "noise is -1"),
        ('{"synthesis": {"thick_share": "a"}}', "thick_share is 'a'"),
        ('{"network": {"channels": 16}}', "head_channels is .* expected 16"),
        ('{"architecture": "voxelmorph"}', "architecture is 'voxelmorph': expected lapirn or ulae"),
        ('{"architecture": "ulae", "network": {"conditional": true}}', "ULAEConfig has no conditional"),
        ('{"architecture": "ulae", "stages": [{"level": 1, "steps": 1}]}', "trained as a whole"),
        ('{"network": 3}', "found 3 where the settings of LapIRNConfig belong"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_settings(tmp_path / "bad.json")
    settings = default_settings("ulae", seed=3)
    settings.write(tmp_path / "settings.json")
    assert read_settings(tmp_path / "settings.json") == read_settings(tmp_path / "settings.json", "ulae") == settings
    with pytest.raises(InputError, match="is for the architecture 'ulae', not for 'lapirn'"):
        read_settings(tmp_path / "settings.json", "lapirn")
    (tmp_path / "old.json").write_text('{"seed": 3}')  # of a run from before there were several
    assert read_settings(tmp_path / "old.json") == TrainingSettings(seed=3)
    assert read_settings(tmp_path / "old.json", "ulae") == settings
    with pytest.raises(InputError, match=r"absent\.json: no settings"):
        read_settings(tmp_path / "absent.json")


@pytest.fixture
def scans(tmp_path):
    """Five little heads without skull, each turned another way, with labels, and a table of them."""
    rows = ["image\tlabels"]
    for number, (shift, stretch) in enumerate([(0, 1), (3, 1.1), (-3, 0.95), (2, 1.1), (-2, 1.05)]):
        labels = little_brain(72, shift, stretch)
        image = T1[np.searchsorted([2, 3, 4, 24, 41, 42, 43], labels)] * (labels > 0)
        affine = np.diag([1.6, 1.6, 1.6, 1.0])
        for name, data in (("T1w", (image + 5 * labels).astype(np.float32)), ("dseg", labels)):
            picture = nib.Nifti1Image(data, affine)
            if number % 2:
                picture = picture.as_reoriented(np.array([[1, -1], [0, 1], [2, 1]]))
            nib.save(picture, tmp_path / f"{number}_{name}.nii.gz")
        rows.append(f"{number}_T1w.nii.gz\t{number}_dseg.nii.gz")
    (tmp_path / "scans.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path / "scans.tsv"


@pytest.mark.slow
def test_real_scans_are_aligned_once_and_trained_on(scans, tmp_path):
    listed = read_scan_list(scans, skull_stripped=True)
    listed.insert(2, ScanFiles(tmp_path / "absent.nii.gz"))
    lines: list[str] = []
    runtime = Runtime(device="cpu", threads=2)
    files = prepare_scans(listed, tmp_path / "cache", runtime, lines.append)
    assert len(files) == 5
    assert sum("left out 3/6" in line and "cannot be read (No such file" in line for line in lines) == 1
    assert prepare_scans(listed, tmp_path / "cache", runtime, lines.append) == files
    assert sum(line.startswith("prepared") for line in lines) == 5
    labels = nib.load(listed[1].labels)  # a file that was mended is read again
    nib.save(nib.Nifti1Image(np.asarray(labels.dataobj) * (labels.get_fdata() != 24), labels.affine), listed[1].labels)
    again = prepare_scans(listed, tmp_path / "cache", runtime, lines.append)
    assert [a == b for a, b in zip(again, files, strict=True)] == [True, False, True, True, True]
    source = RealImages(files, SETTINGS, held_out=2)
    pair = source.validation(1)[0]
    assert pair.fixed.shape[2:] == GRID and pair.fixed.max() == 1 and pair.fixed.min() == 0
    aligned = Validation(source, 1).score(None)
    assert aligned.name == "Dice" and aligned.value > 0.6
    pair = next(pair_stream(source, spacing=2, seed=0))
    assert pair.moving.shape[2:] == pair.moving_labels.shape[2:] == tuple(n // 2 for n in GRID)
    assert (pair.moving > 0).any() and not torch.equal(pair.moving, pair.fixed)
    settings = small(stages=(Stage(1, 4),), validate_every=4, held_out=2)
    train(settings, source, tmp_path / "out", workers=0, log=lines.append)
    assert load_network(tmp_path / "out" / "weights.safetensors")[0].config == settings.network


def test_labels_of_a_scan_are_moved_and_flipped_with_it(maps, tmp_path):
    files = []
    for number, path in enumerate(maps):
        labels = np.load(path)["labels"]
        labels[: SIZE // 3] = 0  # so that a flip shows
        files.append(tmp_path / f"scan{number}.npz")
        np.savez(files[-1], image=(labels / 50).astype(np.float16), labels=labels)
    source = RealImages(files, replace(SETTINGS, pose_mm=4.0))
    sides = set()
    for seed in range(6):
        for image, labels in source.group(np.random.default_rng(seed), 1):
            assert np.corrcoef(image.flatten(), labels.flatten())[0, 1] > 0.97
            sides.add(
                bool((labels[:, :, : SIZE // 3] > 0).float().mean() > (labels[:, :, -SIZE // 3 :] > 0).float().mean())
            )
    assert sides == {True, False}


def test_scans_without_labels_are_validated_by_similarity(maps, tmp_path):
    files = []
    for number, path in enumerate(maps):
        files.append(tmp_path / f"scan{number}.npz")
        np.savez(files[-1], image=(np.load(path)["labels"] % 39 / 39).astype(np.float16))
    score = Validation(RealImages(files, SETTINGS, held_out=2), 2).score(None)
    assert score.name == "similarity" and 0 < score.value <= 1


@pytest.mark.parametrize(
    ("table", "message"),
    [("picture\n", "has the columns"), ("image\tmask\n\tm.nii\n", "line 2: names no image")],
)
def test_a_table_of_scans_that_cannot_be_used_is_refused(table, message, tmp_path):
    (tmp_path / "scans.tsv").write_text(table)
    with pytest.raises(InputError, match=message):
        read_scan_list(tmp_path / "scans.tsv")


def test_label_maps_are_brought_to_one_space_once(tmp_path):
    for name, labels in (
        ("a", little_brain(64)),
        ("b", np.pad(little_brain(64), ((20, 0), (0, 12), (5, 0)))),
    ):
        # Written with other axes than the network's: first to the right, then up.
        nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1, 1, 1])), tmp_path / f"{name}.nii.gz")
    lines: list[str] = []
    paths = prepare_label_maps(tmp_path, tmp_path / "cache", lines.append)
    assert [line.split(":")[0] for line in lines] == ["prepared 1/2", "prepared 2/2"]
    a, b = (np.load(path)["labels"] for path in paths)
    assert a.shape == b.shape == GRID
    assert min(dice(a, b).values()) > 0.9
    stamp = paths[1].stat().st_mtime_ns
    assert prepare_label_maps(tmp_path, tmp_path / "cache", lines.append)[1].stat().st_mtime_ns == stamp
    assert len(lines) == 2
    again = np.load(prepare_label_maps(tmp_path, tmp_path / "again")[1])["labels"]
    assert np.array_equal(again, b)
    shutil.copy(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")  # another map of the same name
    assert np.array_equal(np.load(prepare_label_maps(tmp_path, tmp_path / "cache")[1])["labels"], a)
    labels = little_brain(64)
    labels[labels == 3], labels[labels == 42] = 1012, 103  # a parcel of aparc+aseg, and a number of another scheme
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match=r"b\.nii\.gz has labels that .* lacks \(103\)"):
        prepare_label_maps(tmp_path, tmp_path / "cache")
    labels[labels == 103] = 2012
    nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1, 1, 1])), tmp_path / "b.nii.gz")
    parcels = np.load(prepare_label_maps(tmp_path, tmp_path / "cache")[1])["labels"]
    assert np.array_equal(parcels, a)
    with pytest.raises(InputError, match="at least two"):
        prepare_label_maps(tmp_path / "nowhere", tmp_path / "cache")


def command(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.mark.parametrize("text", ["1:2:3", "1:x:0.1:0", "1:2.9:0.1:0", "1:inf:0.1:0"])
def test_a_schedule_that_cannot_be_read_is_refused(text, tmp_path):
    with pytest.raises(InputError, match="LEVEL:STEPS:RATE:CROP"):
        train_command.main(command("--labels", tmp_path, "--out", tmp_path / "out", "--stage", text))


def test_options_without_effect_are_refused(tmp_path):
    for words, message in (
        (("--labels", tmp_path, "--skull-stripped"), "--skull-stripped has no effect with --labels"),
        (("--scans", "s.tsv", "--participant-label", "01"), "--participant-label has no effect with --scans"),
    ):
        with pytest.raises(InputError, match=message):
            train_command.main(command(*words, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_too_few_scans_and_absent_labels_are_told_before_any_work(scans, tmp_path):
    (tmp_path / "settings.json").write_text('{"label_weight": 1, "held_out": 2}')
    words = ("--scans", scans, "--out", tmp_path / "out", "--settings", tmp_path / "settings.json")
    with pytest.raises(InputError, match="5 brains to train on: expected at least 9"):
        train_command.main(command(*words, "--held-out", 6))
    scans.write_text("image\n" + "".join(f"{number}_T1w.nii.gz\n" for number in range(5)))
    with pytest.raises(InputError, match="no scan has labels"):
        train_command.main(command(*words))
    assert not (tmp_path / "out" / "scans").exists()


@pytest.mark.slow
def test_the_command_trains_on_the_first_session_of_each_participant(scans, tmp_path):
    bids, derived = tmp_path / "bids", tmp_path / "bids/derivatives/manual"
    for root, extra in ((bids, {}), (derived, {"GeneratedBy": [{"Name": "by hand"}]})):
        root.mkdir(parents=True)
        kind = "derivative" if extra else "raw"
        description = {"Name": "heads", "BIDSVersion": "1.10.0", "DatasetType": kind, **extra}
        (root / "dataset_description.json").write_text(json.dumps(description))
    for number in range(5):
        for session in ("1", "2")[: 2 if number == 4 else 1]:
            name = f"sub-{number}/ses-{session}/anat/sub-{number}_ses-{session}"
            for root, kind, suffix in ((bids, "T1w", "T1w"), (derived, "dseg", "desc-hand_dseg")):
                target = root / f"{name}_{suffix}.nii.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(scans.parent / f"{number}_{kind}.nii.gz", target)
    settings = small(stages=(Stage(1, 2),), held_out=2, label_weight=1.0, save_every=1)
    settings.write(tmp_path / "settings.json")
    words = ("--bids", bids, "-d", f"manual={derived}", "--labels-desc", "hand", "--skull-stripped", "--device", "cpu")
    words += ("--threads", 2, "--settings", tmp_path / "settings.json", "--out", tmp_path / "out")
    assert train_command.main(command(*words)) == 0
    log = (tmp_path / "out" / "train.log").read_text()
    assert "of 6 scans the first of each of 5 participants is taken" in log and "prepared 5/5" in log
    assert "stage 1 step 2 validation: Dice" in log
    _, metadata = load_network(tmp_path / "out" / "weights.safetensors")
    assert metadata["training_data"] == "real scans" and metadata["label_weight"] == 1.0
