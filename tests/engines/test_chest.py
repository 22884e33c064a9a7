"""CT of the lungs: their profile, their masks, and the registration of two phases."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from nio_pydra.cli import nio
from nio_pydra.engines.chain import predicted_memory, register_pair
from nio_pydra.engines.contract import Pair, Runtime, ScanFiles
from nio_pydra.engines.lung_masks import find_lungs
from nio_pydra.engines.masks import prepare
from nio_pydra.engines.methods import choose_method, parse_method
from nio_pydra.engines.names import get_engine
from nio_pydra.engines.network_space import NetworkSpace, grid_of
from nio_pydra.errors import InputError
from nio_pydra.metrics import dice
from nio_pydra.profiles import LUNG
from nio_pydra.spatial.images import load_image, load_mask
from nio_pydra.spatial.transforms import apply_affine

RUNTIME = Runtime(device="cpu", threads=2, progress=False)
COARSE = "chest?voxel_size_mm=4.0"


SHAPE = (72, 56, 64)
AFFINE = np.array([[-5.0, 0, 0, 178], [0, -5, 0, 140], [0, 0, 5, -160], [0, 0, 0, 1]])
"""5 mm, axes that run to the left, back and top, as in DICOM."""


def millimetres() -> np.ndarray:
    """Return the RAS position of every voxel, ``(3, X, Y, Z)``."""
    return np.tensordot(AFFINE[:3, :3], np.indices(SHAPE), axes=1) + AFFINE[:3, 3, None, None, None]


def ellipsoid(position: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Return the distance from the centre in radii, 1 at the surface."""
    return np.sqrt((((position.T - np.array(centre)) / np.array(radii)) ** 2).sum(axis=-1)).T


def lungs(position: np.ndarray) -> np.ndarray:
    """Return the voxels of both lungs."""
    return np.min([ellipsoid(position, (side * 75, 5, 0), (55, 75, 125)) for side in (-1, 1)], axis=0) < 1


def windpipe(position: np.ndarray) -> np.ndarray:
    """Return the voxels of the windpipe."""
    return (np.hypot(position[0], position[1]) < 10) & (position[2] > 20)


def bronchi(position: np.ndarray) -> np.ndarray:
    """Return the voxels of the main bronchi, which join the windpipe to both lungs."""
    x, y, z = np.abs(position - np.array([0, 0, 15])[:, None, None, None])
    return (x < 35) & (y < 8) & (z < 6)


def breathing(position: np.ndarray) -> np.ndarray:
    """Return where points at inspiration lie at expiration: the lower they are, the higher they rise."""
    x, _, z = position
    moved = np.array(position, float)
    at_work = np.clip(1.2 - ellipsoid(position, (0, 5, 0), (160, 100, 170)), 0, 1)
    moved[2] += 30 * at_work * (1 - np.tanh(z / 80)) / 2
    moved[1] += 6 * at_work * np.sin(x / 40)
    return moved


def chest(vessels: np.ndarray, index: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return a CT in Hounsfield units whose voxels show the points at `position` of the chest at inspiration."""
    body = ellipsoid(position, (0, 0, 0), (168, 125, 400)) < 1
    inner = -850 + map_coordinates(vessels, index, order=1, mode="nearest")
    ct = np.where(lungs(position), inner, np.where(body, 40 + 0.2 * (inner + 850), -1000))
    return np.where(windpipe(position) | bronchi(position), -1000, ct).astype(np.float32)


def write_pair(folder: Path, *, landmarks: int = 40) -> tuple[ScanFiles, ScanFiles]:
    """Write both phases and landmarks in the lungs; fixed is the inspiration, moving the expiration."""
    rng = np.random.default_rng(0)
    vessels = gaussian_filter(rng.normal(size=SHAPE), 1.2)
    vessels = np.clip(vessels / vessels.std() * 150, -80, 600)
    position = millimetres()
    # The map from expiration to inspiration by a fixed point.
    source = position.copy()
    for _ in range(60):
        source = source - (breathing(source) - position) * 0.7
    to_index = np.linalg.inv(AFFINE)
    index = np.tensordot(to_index[:3, :3], source, axes=1) + to_index[:3, 3, None, None, None]
    phases = {
        "fixed": chest(vessels, np.indices(SHAPE).astype(float), position),
        "moving": chest(vessels, index, source),
    }
    inner = np.argwhere(lungs(position) & (np.abs(position[2]) < 90))
    chosen = inner[rng.choice(len(inner), landmarks, replace=False)]
    points = position[:, chosen[:, 0], chosen[:, 1], chosen[:, 2]]
    scans = []
    for (name, ct), found in zip(phases.items(), (points, breathing(points)), strict=True):
        nib.save(nib.Nifti1Image(ct + rng.normal(0, 15, SHAPE).astype(np.float32), AFFINE), folder / f"{name}.nii.gz")
        np.savetxt(folder / f"{name}.csv", found.T, delimiter=",", header="x,y,z", comments="")
        scans.append(ScanFiles(folder / f"{name}.nii.gz", landmarks=folder / f"{name}.csv"))
    return scans[0], scans[1]


@pytest.fixture(scope="module")
def phases(tmp_path_factory) -> tuple[ScanFiles, ScanFiles]:
    """Inspiration and expiration of a simulated chest, with landmarks."""
    return write_pair(tmp_path_factory.mktemp("chest"))


@pytest.fixture(scope="module")
def pair(phases) -> Pair:
    images = [load_image(phase.image) for phase in phases]
    masks = [nib.Nifti1Image(find_lungs(image).astype(np.uint8), image.affine) for image in images]
    return Pair(*images, np.eye(4), *masks, profile=LUNG)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "IRP"])
def test_both_lungs_are_found_without_the_windpipe_whatever_the_order_of_axes(phases, axes):
    image = nib.load(phases[0].image)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    mask = nib.Nifti1Image(find_lungs(image.as_reoriented(turn)).astype(np.uint8), image.as_reoriented(turn).affine)
    found = np.asanyarray(nib.as_closest_canonical(mask).dataobj)[::-1, ::-1] > 0
    position = millimetres()
    assert dice(found.astype(np.uint8), lungs(position).astype(np.uint8))[1] > 0.98
    assert not (found & windpipe(position)).any()


@pytest.mark.parametrize(
    ("file", "litres"),
    [
        ("ct_single_phase/chest_ct_phase00_2mm.nii.gz", (4.5, 6.0)),
        ("elastix_pair/3DCT_lung_followup_RECONSTRUCTED.nii.gz", (3.5, 4.5)),
    ],
)
def test_the_lungs_of_real_scans_have_their_size_and_are_dark(real_data, file, litres):
    image = load_image(real_data / "lung" / file)
    mask = find_lungs(image)
    assert litres[0] < mask.sum() * abs(np.linalg.det(image.affine[:3, :3])) / 1e6 < litres[1]
    values = np.asanyarray(image.dataobj)
    assert values[mask].mean() < -700
    # Aerated voxels that are left out are the air around the body, windpipe and bronchi, or bowel gas.
    assert (values[mask] < -400).mean() > 0.9


def test_a_mask_made_by_hand_of_a_real_lung_is_met(real_data):
    folder = real_data / "lung" / "elastix_pair"
    found = find_lungs(load_image(folder / "3DCT_lung_followup_RECONSTRUCTED.nii.gz"))
    given = np.asanyarray(load_mask(folder / "3DCT_lung_followup_mask.mha").dataobj)
    assert dice(found.astype(np.uint8), given)[1] > 0.97


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ct: np.clip((ct + 1000) / 8, 0, 255), "like grey values of a picture"),
        (lambda ct: np.clip(ct + 1024, 0, None), "with 1024 added: subtract 1024"),
        (lambda ct: np.where(np.indices(ct.shape)[0] < 3, -2000, np.clip(ct + 1024, 0, None)), "with 1024 added"),
        (lambda ct: np.clip(ct, -100, None), "shows air or lungs"),
    ],
)
def test_a_ct_whose_values_are_no_hounsfield_units_is_refused(phases, tmp_path, change, said):
    image = nib.load(phases[0].image)
    nib.save(nib.Nifti1Image(change(image.get_fdata()).astype(np.float32), image.affine), tmp_path / "ct.nii.gz")
    with pytest.raises(InputError, match=rf"ct\.nii\.gz has values from .*{said}") as refused:
        prepare(ScanFiles(tmp_path / "ct.nii.gz"), tmp_path, RUNTIME, role="fixed image", profile=LUNG)
    assert "\n" not in str(refused.value)


def test_an_empty_mask_and_one_of_another_place_are_refused(phases, tmp_path):
    image = nib.load(phases[0].image)
    elsewhere = image.affine.copy()
    elsewhere[:3, 3] += 2000
    for name, voxels, affine, said in (
        ("empty", np.zeros(image.shape, np.uint8), image.affine, "is empty"),
        ("elsewhere", np.ones(image.shape, np.uint8), elsewhere, "lies outside"),
    ):
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
        scan = replace(phases[0], mask=tmp_path / f"{name}.nii.gz")
        with pytest.raises(InputError, match=rf"{name}\.nii\.gz \(lung mask\) {said}"):
            prepare(scan, tmp_path, RUNTIME, role="fixed image", profile=LUNG)


def test_a_chest_is_seen_whole_and_compared_in_the_lungs(pair):
    ct, seen = np.asanyarray(pair.fixed.dataobj), np.asanyarray(pair.fixed_object.dataobj)
    np.testing.assert_allclose(seen, np.clip(ct, -1200, 600) + 1200, rtol=1e-6)
    conventions = {"orientation": "LIA", "voxel_size_mm": 5.0}
    grid = grid_of(pair, pair.fixed_object, conventions, 8)
    problem = NetworkSpace.of(pair, grid, pair.fixed_object, "percentile", "cpu").problem
    outside = problem.fixed_weights[0, 0] == 0
    assert 0.2 < float(outside.float().mean()) < 0.9
    assert float(problem.fixed[0, 0][outside].mean()) > 0.2  # the wall of the chest, not zero
    assert float(problem.fixed.min()) >= 0 and float(problem.fixed.max()) <= 1


def test_the_networks_grid_holds_both_phases(pair):
    """A lung at expiration is smaller; what reaches further at inspiration must be there to be moved."""
    upper = np.where(millimetres()[2] > -60, np.asanyarray(pair.moving_mask.dataobj), 0)
    mask = nib.Nifti1Image(upper.astype(np.uint8), pair.moving.affine)
    small = Pair(pair.moving, pair.fixed, pair.affine, mask, pair.fixed_mask, profile=LUNG)
    grid = grid_of(small, small.fixed_object, {"orientation": "RAS", "voxel_size_mm": 2.0}, 8)
    points = apply_affine(pair.fixed.affine, np.argwhere(small.moving_region.dataobj).astype(float))
    inside = apply_affine(np.linalg.inv(grid.affine), points)
    assert (inside >= 0).all() and (inside <= np.array(grid.shape) - 1).all()


def test_nio_m_brings_landmarks_nearer_than_lapirn_alone(phases, tmp_path):
    few = parse_method(f"nio_m:{COARSE}&network.iterations=[15, 12, 4]")
    records = [
        register_pair(*phases, tmp_path, method, profile=LUNG, runtime=RUNTIME, affine=False)
        for method in (parse_method(f"lapirn:{COARSE}"), few)
    ]
    predicted, optimised = (record["tre"]["after"]["mean"] for record in records)
    before = records[0]["tre"]["before"]["mean"]
    assert before == pytest.approx(records[0]["tre"]["affine"]["mean"])  # there was no affine
    assert predicted < before and optimised < 0.5 * predicted
    assert optimised < 3  # mm, of voxels of 5
    assert records[1]["network_voxel_size_mm"] == 4 and records[1]["profile"] == "lung"
    # Beyond the border of the moving image is air, not water.
    warped = nib.load(tmp_path / "warped.nii.gz").get_fdata()
    assert warped.min() < -900 and not (warped == 0).all(axis=(0, 1)).any()


def test_swapped_landmarks_are_noticed(phases, tmp_path, caplog):
    fixed, moving = (
        replace(phase, landmarks=other.landmarks) for phase, other in zip(phases, phases[::-1], strict=True)
    )
    few = parse_method(f"nio_m:{COARSE}&network.iterations=[15, 12, 0]")
    with caplog.at_level(logging.WARNING, logger="nio_pydra"):
        record = register_pair(fixed, moving, tmp_path, few, profile=LUNG, runtime=RUNTIME, affine=False)
    assert record["tre"]["after"]["mean"] > 1.3 * record["tre"]["before"]["mean"]
    assert "swapped?" in caplog.text


def test_one_phase_twice_landmarks_of_one_and_different_frames_are_refused(phases, tmp_path):
    fixed, moving = phases
    method = choose_method("affine")
    image = nib.load(moving.image)
    far = image.affine.copy()
    far[2, 3] += 400
    nib.save(nib.Nifti1Image(image.get_fdata(), far), tmp_path / "far.nii.gz")
    for scans, said in (
        ((fixed, fixed), "are the same image"),
        ((fixed, replace(moving, landmarks=None)), "landmarks of the fixed image only"),
        ((replace(fixed, landmarks=None), ScanFiles(tmp_path / "far.nii.gz")), "do not lie in one frame"),
    ):
        with pytest.raises(InputError, match=said):
            register_pair(*scans, tmp_path / "out", method, profile=LUNG, runtime=RUNTIME, affine=False)
        assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("engine", ["syn", "greedy", "niftyreg", "convexadam"])
def test_other_engines_compare_the_lungs_of_whole_scans(phases, tmp_path, engine):
    if reason := get_engine(engine).available():
        pytest.skip(reason)
    cheap = {"convexadam": "convexadam?voxel_size_mm=4.0&iterations=20", "syn": "syn:fast"}
    method = parse_method(cheap.get(engine, engine))
    record = register_pair(*phases, tmp_path, method, profile=LUNG, runtime=RUNTIME, affine=False)
    assert record["tre"]["after"]["mean"] < 0.75 * record["tre"]["before"]["mean"]


def test_the_command_takes_the_chests_preset_and_tells_the_distances(phases, tmp_path, capsys):
    words = ["register", "--profile", "lung", "--affine", "none", "--engine", "lapirn", "--out", str(tmp_path / "out")]
    for role, phase in zip(("fixed", "moving"), phases, strict=True):
        words += [f"--{role}", str(phase.image), f"--{role}-landmarks", str(phase.landmarks)]
    (tmp_path / "coarse.toml").write_text("voxel_size_mm = 5.0\n")
    assert nio.main([*words, "--settings", str(tmp_path / "coarse.toml"), "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["preset"] == "chest" and record["settings"]["smoothings"] == 3
    said = capsys.readouterr().out
    assert f"{record['tre']['before']['mean']:.2f} -> " in said and f"{record['tre']['after']['mean']:.2f}, " in said
    assert "T1w" not in said


def test_a_scan_of_512_voxels_needs_less_than_twelve_gigabytes(tmp_path):
    """512 x 512 x 130, the largest of DIR-Lab, with lungs of a large man: 32 x 26 x 31 cm."""
    spacing = np.array([0.97, 0.97, 2.5])
    affine = np.diag([*spacing, 1.0])
    shape, radii = (512, 512, 130), (160, 130, 155)
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    inside = sum(((axes[i] - shape[i] / 2) * spacing[i] / radii[i]) ** 2 for i in range(3)) < 1
    nib.save(nib.Nifti1Image(np.where(inside, -850, 40).astype(np.int16), affine), tmp_path / "ct.nii")
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), affine), tmp_path / "mask.nii")
    scan = ScanFiles(tmp_path / "ct.nii", tmp_path / "mask.nii")
    predicted = predicted_memory(scan, choose_method("nio_m", "chest"), replace(RUNTIME, precision="float32"), LUNG)
    assert 4000 < predicted.process < 12_000


def test_a_real_lung_is_met_by_a_cheap_preset(real_data, tmp_path):
    folder = real_data / "lung" / "elastix_pair"
    fixed = ScanFiles(
        folder / "3DCT_lung_baseline_small.mha", landmarks=folder / "CT_3D_lung_fixed_point_set_corrected.txt"
    )
    moving = ScanFiles(
        folder / "3DCT_lung_followup_RECONSTRUCTED.nii.gz",
        landmarks=folder / "CT_3D_lung_moving_point_set_corrected.txt",
    )
    method = parse_method("nio_m:chest?voxel_size_mm=3.5&network.iterations=[10, 5, 0]")
    tre = register_pair(fixed, moving, tmp_path, method, profile=LUNG, runtime=RUNTIME)["tre"]
    assert tre["before"]["mean"] == pytest.approx(35.3, abs=0.1)
    assert tre["affine"]["mean"] < 6
    assert tre["after"]["mean"] < 0.5 * tre["affine"]["mean"]
