"""The engines behind their one contract, from files to files."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nio_pydra.engines import chain, registration
from nio_pydra.engines.chain import RESULTS, register_pair
from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.engines.methods import choose_method
from nio_pydra.engines.names import ENGINES, get_engine
from nio_pydra.engines.registration import map_volume_change, register, warp
from nio_pydra.errors import ComputationError, InputError
from nio_pydra.networks import LapIRN, LapIRNConfig, load_network, save_network
from nio_pydra.networks.ulae import ULAE, ULAEConfig
from nio_pydra.spatial.itk import read_h5, write_h5
from nio_pydra.spatial.transforms import DisplacementField, Transform

RUNTIME = Runtime(device="cpu", threads=2, progress=False)
SHAPE = (56, 60, 52)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Two skull-stripped brains of 2 mm, oblique and in different orientations, labels, and an affine."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    texture = gaussian_filter(rng.random(SHAPE), 2)
    texture = 0.5 + 2 * (texture - texture.mean()) / texture.std() / 10
    fixed_affine = np.diag([2.0, 2, 2, 1])
    fixed_affine[:3, 3] = (-56, -60, -52)
    turn = nib.eulerangles.euler2mat(0.1, 0.05, -0.08)
    moving_affine = fixed_affine.copy()
    moving_affine[:3, :3] = turn @ fixed_affine[:3, :3]
    push = np.stack([gaussian_filter(rng.normal(size=SHAPE), 7) for _ in range(3)])
    push *= 0.12 / np.abs(push).max()
    for name, position, affine in (("fixed", grid, fixed_affine), ("moving", grid + push, moving_affine)):
        radius = np.sqrt(((position / 0.8) ** 2).sum(axis=0))
        from scipy.ndimage import map_coordinates

        index = (position + 1) / 2 * (np.array(SHAPE) - 1).reshape(3, 1, 1, 1)
        image = map_coordinates(texture, index, order=1, mode="nearest") * (radius < 1)
        labels = np.where(radius < 1, 1 + (radius < 0.75) + (radius < 0.5), 0)
        for suffix, data in (("", image.astype(np.float32)), ("_labels", labels.astype(np.int16))):
            out = nib.Nifti1Image(data, affine)
            if name == "moving":
                out = out.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
            nib.save(out, folder / f"{name}{suffix}.nii.gz")
    world = moving_affine @ np.linalg.inv(fixed_affine)
    write_h5(Transform((world,)), folder / "affine.h5")
    metadata = {"orientation": "LIA", "voxel_size_mm": 2.0, "intensity_scaling": "percentile", "lambda": 0.4}
    tiny = LapIRNConfig(encoder_channels=4, channels=4, head_channels=(4, 4, 4))
    save_network(LapIRN(tiny), folder / "tiny.safetensors", metadata)
    save_network(ULAE(ULAEConfig(channels=4)), folder / "tiny_ulae.safetensors", metadata)
    return folder


def scan_files(scans: Path) -> tuple[ScanFiles, ScanFiles]:
    return ScanFiles(scans / "fixed.nii.gz"), ScanFiles(scans / "moving.nii.gz")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_transforms_that_undo_each_other_and_a_full_record(scans, tmp_path, engine):
    if reason := get_engine(engine).available():
        pytest.skip(reason)
    preset = {"syn": "fast", "nio_m": "draft", "nio": "draft", "io": "draft"}.get(engine)
    # A network that learned nothing is enough to predict or to start from, not to be optimised in a few steps.
    weights = {"lapirn": "tiny.safetensors", "io": "tiny.safetensors", "ulae": "tiny_ulae.safetensors"}.get(engine)
    network = {"weights": scans / weights} if weights else {}
    files = register(
        *scan_files(scans), scans / "affine.h5", tmp_path, choose_method(engine, preset, **network),
        affine_record={"seconds": 1.5, "processor_seconds": 1.4, "starts": 3}, runtime=RUNTIME,
    )  # fmt: skip
    record = json.loads(files.record.read_text())
    assert record["engine"] == engine and record["preset"] == (preset or next(iter(get_engine(engine).presets)))
    assert record["settings"] == choose_method(engine, preset, **network).record()["settings"]
    assert record["seconds"]["affine"] == 1.5 and record["seconds"]["affine_processor"] == 1.4
    assert record["affine"]["starts"] == 3
    assert min(record["seconds"].values()) >= 0 and record["seconds"]["files"] > 0
    assert record["peak_memory_mb"] > 100 and record["threads"] == 2 and record["device"] == "cpu"
    assert {"nio_pydra", "torch", "antspyx"} <= record["versions"].keys()
    for way in ("voxels", "between_voxels", "backward"):
        assert record["inverse_error_mm"][way]["median"] < 0.15 and record["inverse_error_mm"][way]["p99"] < 1
    fixed, warped = nib.load(scans / "fixed.nii.gz"), nib.load(files.warped)
    assert warped.shape == fixed.shape and np.allclose(warped.affine, fixed.affine)
    forward, inverse = read_h5(files.forward_xfm), read_h5(files.inverse_xfm)
    points = np.random.default_rng(0).uniform(-35, 35, (200, 3))
    assert np.median(np.linalg.norm(inverse.map_points(forward.map_points(points)) - points, axis=1)) < 0.1
    if engine in ("nio_m", "nio", "io", "syn"):
        assert record["similarity"]["after"] > record["similarity"]["before"] + 0.03
    if weights:
        assert record["weights"]["name"] == weights


def test_folds_of_a_network_are_counted_and_removed(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(registration, "LEAST_KEPT", 0)  # it learned nothing
    network, metadata = load_network(scans / "tiny.safetensors")
    with torch.no_grad():
        network.levels[2].head[2].weight *= 300
    save_network(network, tmp_path / "folding.safetensors", metadata)
    files = register(
        *scan_files(scans), scans / "affine.h5", tmp_path,
        choose_method("lapirn", weights=tmp_path / "folding.safetensors"), runtime=RUNTIME,
    )  # fmt: skip
    record = json.loads(files.record.read_text())
    assert record["before_unfolding"]["fold_percent"] > 1
    assert record["fold_percent"] == 0


def test_a_registration_that_ruins_the_match_has_failed(scans, tmp_path):
    network, metadata = load_network(scans / "tiny.safetensors")
    with torch.no_grad():
        network.levels[2].head[2].weight *= 1e30
    save_network(network, tmp_path / "ruin.safetensors", metadata)
    with pytest.raises(
        ComputationError, match=r"moving\.nii\.gz fits .*fixed\.nii\.gz worse after the registration by lapirn"
    ):
        register(
            *scan_files(scans), scans / "affine.h5", tmp_path / "out",
            choose_method("lapirn", weights=tmp_path / "ruin.safetensors"), runtime=RUNTIME,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_conditional_network_is_told_what_its_metadata_say(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(registration, "LEAST_KEPT", 0)  # it learned nothing
    torch.manual_seed(0)
    network = LapIRN(LapIRNConfig(encoder_channels=4, channels=4, head_channels=(4, 4, 4), conditional=True))
    with torch.no_grad():
        network.levels[0].head[2].weight *= 100  # so that it moves something
    metadata = {"orientation": "LIA", "voxel_size_mm": 2.0, "intensity_scaling": "percentile"}
    warped = []
    for name, scale, told in (("own", {}, 0.4), ("scaled", {"condition_scale": 1.2}, 0.8)):
        save_network(network, tmp_path / f"{name}.safetensors", metadata | scale)
        files = register(
            *scan_files(scans), scans / "affine.h5", tmp_path / name,
            choose_method("lapirn", weights=tmp_path / f"{name}.safetensors"), runtime=RUNTIME,
        )  # fmt: skip
        assert json.loads(files.record.read_text())["condition"] == pytest.approx(told)
        warped.append(nib.load(files.warped).get_fdata())
    assert np.abs(warped[0] - warped[1]).max() > 1e-3


def test_a_pair_is_masked_aligned_registered_and_scored(scans, tmp_path):
    record = register_pair(
        *(
            ScanFiles(scans / f"{role}.nii.gz", labels=scans / f"{role}_labels.nii.gz", skull_stripped=True)
            for role in ("fixed", "moving")
        ),
        tmp_path / "out", choose_method("io", "draft", weights=scans / "tiny.safetensors"), runtime=RUNTIME,
    )  # fmt: skip
    assert set(record["dice"]["labels"]) == {"1", "2", "3"} and record["dice"]["mean"] > 0.75
    assert record["seconds"]["affine"] > 0 and record["affine"]["starts"] == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == set(RESULTS) - {"jacobian.nii.gz"}
    back, own = nib.load(tmp_path / "out" / "fixed_labels.nii.gz"), nib.load(scans / "moving_labels.nii.gz")
    assert back.shape == own.shape and np.mean(np.asarray(back.dataobj) == np.asarray(own.dataobj)) > 0.9
    labels = nib.load(tmp_path / "out" / "labels.nii.gz")
    assert labels.get_data_dtype() == np.uint8 and set(np.unique(labels.dataobj)) == {0, 1, 2, 3}


def test_the_map_of_volume_change_is_the_known_one_and_keeps_the_amount_of_tissue(tmp_path):
    spacing = np.array([1, 2, 1.5])
    shape, grid = (64, 40, 48), np.diag([*spacing, 1])
    x = np.broadcast_to(np.arange(64).reshape(-1, 1, 1) * spacing[0], shape)
    shift = np.zeros((3, *shape), np.float32)
    shift[0] = 4 * np.sin(2 * np.pi * x / 64)
    affine = np.diag([1.2, 0.9, 1.1, 1])
    affine[:3, :3] = nib.eulerangles.euler2mat(0.1, -0.2, 0.1) @ affine[:3, :3]
    affine[:3, 3] = (3, -5, 4)
    transform = write_h5(Transform((DisplacementField(shift, grid), affine)), tmp_path / "xfm.h5")
    tissue = np.zeros((50, 50, 50), np.float32)
    centre = np.round(affine[:3, :3] @ [20, 40, 36] + affine[:3, 3]).astype(int) // 2
    tissue[tuple(centre)] = 1
    tissue = gaussian_filter(tissue, 3)
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32) + x.astype(np.float32), grid), tmp_path / "fixed.nii.gz")
    nib.save(nib.Nifti1Image(tissue, np.diag([2.0, 2, 2, 1])), tmp_path / "tissue.nii.gz")
    found = map_volume_change(transform, tmp_path / "fixed.nii.gz", tmp_path / "jacobian.nii.gz")
    factor = nib.load(found).get_fdata()
    known = (1 + 4 * 2 * np.pi / 64 * np.cos(2 * np.pi * x / 64)) * 1.2 * 0.9 * 1.1
    assert np.allclose(factor[1:-1], known[1:-1], atol=0.005) and np.ptp(factor) > 0.5
    warped = nib.load(warp(tmp_path / "tissue.nii.gz", tmp_path / "fixed.nii.gz", transform, tmp_path / "w.nii.gz"))
    amount, unmodulated = tissue.sum() * 8, warped.get_fdata().sum() * spacing.prod()
    assert (warped.get_fdata() * factor).sum() * spacing.prod() == pytest.approx(amount, rel=0.005)
    assert abs(unmodulated / amount - 1) > 0.1


def test_labels_on_another_grid_stop_the_pair_before_any_work(scans, tmp_path):
    with pytest.raises(InputError, match="same grid"):
        register_pair(
            ScanFiles(scans / "fixed.nii.gz", skull_stripped=True),
            ScanFiles(scans / "moving.nii.gz", labels=scans / "fixed_labels.nii.gz", skull_stripped=True),
            tmp_path / "out", runtime=RUNTIME,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_be_used_stop_the_pair_before_any_work(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "prepare", lambda *_, **__: pytest.fail("the work has begun"))
    for weights, sentence in (
        (tmp_path / "absent.safetensors", "no such"),
        (scans / "tiny_ulae.safetensors", "LapIRN"),
    ):
        with pytest.raises(InputError, match=sentence):
            register_pair(*scan_files(scans), tmp_path / "out", choose_method(weights=weights), runtime=RUNTIME)
    assert not (tmp_path / "out").exists()


def test_cuda_is_refused_where_there_is_none(scans, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="no CUDA"):
        register(
            *scan_files(scans), scans / "affine.h5", tmp_path,
            choose_method("lapirn", weights=scans / "tiny.safetensors"), runtime=Runtime(device="cuda"),
        )  # fmt: skip


def test_a_field_can_be_optimised_from_zero_without_any_network(scans, tmp_path):
    method = choose_method("io", "draft", changes={"start": "zero", "field": {"learning_rate": 0.5}})
    files = register(*scan_files(scans), scans / "affine.h5", tmp_path, method, runtime=RUNTIME)
    record = json.loads(files.record.read_text())
    assert "weights" not in record and record["settings"]["start"] == "zero"
    assert record["similarity"]["after"] > record["similarity"]["before"] + 0.03
    assert method.fingerprint() == ""


def test_the_fingerprint_of_a_network_is_that_of_its_weights(scans, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((scans / "tiny.safetensors").read_bytes())
    prints = [choose_method("nio_m", weights=w).fingerprint() for w in (scans / "tiny.safetensors", copy, None)]
    assert prints[0] == prints[1] != prints[2]
    with pytest.raises(InputError, match="needs LapIRN, but found weights of ulae"):
        choose_method("nio_m", weights=scans / "tiny_ulae.safetensors").fingerprint()
    copy.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"copy\.safetensors"):
        choose_method("nio_m", weights=copy).fingerprint()
