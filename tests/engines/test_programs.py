"""The engines that run other programs: `affine`, `syn`, `greedy`, `niftyreg` and `convexadam`."""

import os
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nio_pydra.engines import affine, ants_process, convexadam, greedy, niftyreg, syn
from nio_pydra.engines.alignment_check import check_affine
from nio_pydra.engines.contract import Engine, Pair, Runtime, ScanFiles
from nio_pydra.engines.methods import choose_method
from nio_pydra.engines.names import get_engine
from nio_pydra.errors import InputError, ProgramError
from nio_pydra.metrics import regularity
from nio_pydra.spatial.inversion import invert
from nio_pydra.spatial.itk import read_affine
from nio_pydra.spatial.transforms import Transform, apply_affine, resample, voxel_centres

RUNTIME = Runtime(device="cpu", threads=1, seed=0)
HEAD = np.array([5.0, -10.0, 20.0])
"""Centre of the synthetic head in fixed world, mm."""


def _head(points: np.ndarray) -> np.ndarray:
    """Intensities (N,) of an ellipsoid full of folds, at points (N, 3) in fixed world, mm."""
    q = points - HEAD
    folds = np.sin(q[:, 0] / 9 + q[:, 1] / 30) + np.sin(q[:, 1] / 11 - 1) * np.cos(q[:, 2] / 8 + q[:, 0] / 25)
    edge = np.linalg.norm(q / [62, 80, 50], axis=1)
    return (100 + 25 * folds + 0.3 * q[:, 1]) / (1 + np.exp((edge - 1) * 25))


def _image(shape, matrix, to_fixed=lambda points: points) -> nib.Nifti1Image:
    values = _head(to_fixed(voxel_centres(shape, matrix, 0, int(np.prod(shape)))))
    return nib.Nifti1Image(values.reshape(shape).astype(np.float32), matrix)


def _turn(axes: str, degrees) -> np.ndarray:
    return Rotation.from_euler(axes, degrees, degrees=True).as_matrix()


def _grid(shape, centre, spacing, axes, turn) -> np.ndarray:
    """Voxel-to-world matrix: `axes` (3x3 signed permutation) turned by `turn` degrees, around `centre`."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.array(axes) @ np.diag(spacing)
    matrix[:3, 3] = np.array(centre) - matrix[:3, :3] @ (np.array(shape) - 1) / 2
    return matrix


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Fixed world to moving world: turned by 15 degrees, a tenth larger, a quarter of a metre away."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zx", [15, -8], degrees=True).as_matrix() @ np.diag([1.1, 0.95, 1.05])
    matrix[:3, 3] = [250, -120, 40] - matrix[:3, :3] @ HEAD
    return matrix


@pytest.fixture(scope="module")
def fixed() -> nib.Nifti1Image:
    """Oblique, anisotropic, LPI-like."""
    shape = (50, 56, 38)
    return _image(shape, _grid(shape, HEAD, (3, 3.5, 3.5), np.diag([-1, 1, 1]), (5, 10, -5)))


def _moving(truth, bend=lambda points: points, lesion=False) -> nib.Nifti1Image:
    """On a grid of another orientation (P-I-R like), the head carried by `truth` after `bend`."""
    shape = (60, 42, 54)
    centre = apply_affine(truth, HEAD[None])[0]
    grid = _grid(shape, centre, (3.5, 3, 3), [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], (0, -7, 12))
    image = _image(shape, grid, lambda points: bend(apply_affine(np.linalg.inv(truth), points)))
    if lesion:
        inside = _lesion(image)
        image = nib.Nifti1Image(np.where(inside, np.float32(250), image.get_fdata(dtype=np.float32)), grid)
    return image


def _lesion(image) -> np.ndarray:
    index = np.moveaxis(np.indices(image.shape), 0, -1)
    return np.linalg.norm(index - np.array(image.shape) / 2 - [6, 2, 3], axis=-1) < 5


def _bend(points: np.ndarray) -> np.ndarray:
    """Moved head back to the fixed head: a smooth displacement of up to 6 mm an axis."""
    q = (points - HEAD) / 30
    return points + 6 * np.stack([np.sin(q[:, 1]), np.sin(q[:, 2] + 1) - 0.5, np.sin(q[:, 0])], axis=1)


def _inside(image, threshold=40) -> np.ndarray:
    """World points (N, 3) of the head's voxels."""
    return apply_affine(image.affine, np.argwhere(image.get_fdata() > threshold))


def _save(folder: Path, fixed, moving) -> tuple[Path, Path]:
    paths = folder / "fixed.nii.gz", folder / "moving.nii.gz"
    for path, image in zip(paths, (fixed, moving), strict=True):
        nib.save(image, path)
    return paths


def test_affine_finds_a_known_affine_repeatably_across_orientations(tmp_path, fixed, truth, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    paths = _save(tmp_path, fixed, _moving(truth))
    found = []
    for name, threads in (("a.h5", 1), ("b.h5", 2)):
        runtime = Runtime(device="cpu", threads=threads, seed=0)
        record = affine.align(*map(ScanFiles, paths), tmp_path / name, runtime)
        found.append(read_affine(tmp_path / name))
    points = _inside(fixed)
    error = np.linalg.norm(apply_affine(found[0], points) - apply_affine(truth, points), axis=1)
    assert error.max() < 1.0  # a fifth of a voxel; the start is 15 degrees off
    np.testing.assert_array_equal(found[0], found[1])
    assert record["seconds"] > 0 and record["processor_seconds"] > 0 and record["peak_memory_mb"] > 50
    assert not list(scratch.iterdir())


def test_affine_masks_take_a_bright_blob_out_of_the_alignment(tmp_path, fixed, truth):
    moving = _moving(truth)
    blob = np.zeros(moving.shape, dtype=bool)
    blob[:8, :8, :8] = True
    spoiled = nib.Nifti1Image(np.where(blob, np.float32(3000), moving.get_fdata(dtype=np.float32)), moving.affine)
    paths = _save(tmp_path, fixed, spoiled)
    mask = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image((~blob).astype(np.uint8), moving.affine), mask)
    affine.align(ScanFiles(paths[0]), ScanFiles(paths[1], mask), tmp_path / "out.h5", RUNTIME)
    points = _inside(fixed)
    found = read_affine(tmp_path / "out.h5")
    assert np.linalg.norm(apply_affine(found, points) - apply_affine(truth, points), axis=1).max() < 1.0


def test_affine_leaves_a_lesion_out_of_the_similarity(tmp_path, fixed, truth):
    moving = _moving(truth)
    index = np.moveaxis(np.indices(moving.shape), 0, -1)
    lesion = np.linalg.norm(index - np.array(moving.shape) / 2 - [8, 0, 0], axis=-1) < 12
    spoiled = np.where(lesion, np.float32(400), moving.get_fdata(dtype=np.float32))
    paths = _save(tmp_path, fixed, nib.Nifti1Image(spoiled, moving.affine))
    mask = tmp_path / "lesion.nii.gz"
    nib.save(nib.Nifti1Image(lesion.astype(np.uint8), moving.affine), mask)

    def error(lesion_mask):
        out = tmp_path / "out.h5"
        affine.align(ScanFiles(paths[0]), ScanFiles(paths[1], lesion_mask=lesion_mask), out, RUNTIME)
        points = _inside(fixed)
        return np.linalg.norm(apply_affine(read_affine(out), points) - apply_affine(truth, points), axis=1).mean()

    assert error(mask) < 0.5 * error(None)


def test_a_lesion_that_covers_the_brain_is_refused(fixed, truth):
    lesion = nib.Nifti1Image(np.ones(fixed.shape, np.uint8), fixed.affine)
    with pytest.raises(InputError, match=r"sub-7\.nii: its lesion mask covers the whole brain"):
        affine.align_images(fixed, fixed, RUNTIME, names=(Path("atlas.nii"), Path("sub-7.nii")), lesion=lesion)


def test_a_brain_mask_beside_the_brain_is_refused_with_the_name_of_the_image(tmp_path, fixed, truth):
    empty = fixed.get_fdata(dtype=np.float32) * (np.arange(fixed.shape[0]) > 20)[:, None, None]
    paths = _save(tmp_path, nib.Nifti1Image(empty, fixed.affine), _moving(truth))
    mask = np.zeros(fixed.shape, np.uint8)
    mask[:10] = 1
    nib.save(nib.Nifti1Image(mask, fixed.affine), tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match=r"fixed\.nii\.gz is zero in all of its brain mask"):
        affine.align(ScanFiles(paths[0], tmp_path / "mask.nii.gz"), ScanFiles(paths[1]), tmp_path / "out.h5", RUNTIME)


@pytest.mark.parametrize("linear", [np.diag([-1, 1, 1]), np.diag([2.5, 1, 1]), np.diag([1, 1, 0.4]), np.zeros((3, 3))])
def test_an_impossible_affine_is_refused_with_the_name_of_the_moving_file(linear):
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    with pytest.raises(InputError, match=r"sub-7_T1w\.nii\.gz could not be aligned"):
        check_affine(matrix, Path("sub-7_T1w.nii.gz"), Path("atlas.nii.gz"))
    check_affine(np.diag([1.3, 0.8, 1, 1]), Path("m"), Path("f"))


COARSE = {"convexadam": {"voxel_size_mm": 3.0, "search_radius": 2}}
"""What the tests change in presets that are made for finer images than theirs."""
SHORT = {
    "syn": {"iterations": (40, 0)},
    "greedy": {"iterations": (40, 0)},
    "niftyreg": {"levels": 2, "iterations": 20},
}
"""Schedules that are enough to be pulled by a lesion; of the engines that can leave it out."""
NIFTYREG_WAYS = (
    {"velocity": True, "levels": 2, "iterations": 10},
    {"similarity": "lncc", "levels": 2, "iterations": 20},
)
SMOOTHER = {
    "syn": {"field_variance": 5.0},
    "greedy": {"field_smoothing_mm": 4.0},
    "niftyreg": {"bending_energy": 0.3},
    "convexadam": {"smoothness": 20},
}


def _engine(name: str) -> Engine:
    """Return an engine; the test is skipped where its program is not installed."""
    engine = get_engine(name)
    if reason := engine.available():
        pytest.skip(reason)
    return engine


@pytest.fixture(params=["syn", "greedy", "niftyreg", "convexadam"])
def program(request):
    """An engine that runs a program, and settings that suit the images here."""
    engine = _engine(request.param)
    return engine, replace(next(iter(engine.presets.values())), **COARSE.get(request.param, {}))


def _check_match(engine, settings, fixed, truth):
    """The match improves and both directions undo each other."""
    moving = _moving(truth, _bend)
    result = engine.run(Pair(fixed, moving, truth), settings, RUNTIME)
    target = fixed.get_fdata()

    def error(*steps):
        return np.abs(resample(moving, fixed, Transform(steps)).get_fdata() - target)[target > 1].mean()

    assert error(result.forward, truth) < 0.5 * error(truth)

    points = _inside(fixed)
    there = Transform((result.forward, truth)).map_points(points)
    assert np.linalg.norm(there - apply_affine(truth, points), axis=1).max() > 3  # it moved
    back = Transform((np.linalg.inv(truth), result.inverse or invert(result.forward))).map_points(there)
    distance = np.linalg.norm(back - points, axis=1)
    assert np.median(distance) < 0.1 and np.percentile(distance, 99) < 1
    assert result.spent.wall > 0 and result.spent.processor > 0 and result.details["peak_memory_mb"] > 20


def test_a_program_improves_the_match_and_its_fields_undo_each_other(program, fixed, truth):
    _check_match(*program, fixed, truth)


@pytest.mark.parametrize("changes", NIFTYREG_WAYS)
def test_niftyreg_improves_the_match_in_its_other_ways_too(changes, fixed, truth):
    engine = _engine("niftyreg")
    _check_match(engine, replace(engine.presets["default"], **changes), fixed, truth)


# The others stop short of so large a shift on so coarse a grid.
@pytest.mark.parametrize("program", ["niftyreg", "convexadam"], indirect=True)
def test_a_program_finds_a_shift_in_the_world_of_the_fixed_image(program, fixed, truth):
    engine, settings = program
    shift = np.array([4.0, -7.0, 2.0])
    moving = _moving(truth, lambda points: points - shift)
    forward = engine.run(Pair(fixed, moving, truth), settings, RUNTIME).forward
    found = np.median(forward.vectors[:, fixed.get_fdata() > 40], axis=1)
    np.testing.assert_allclose(found, shift, atol=0.7)


@pytest.mark.parametrize("name", SMOOTHER)
def test_a_program_can_be_told_to_find_a_smoother_field(name, fixed, truth):
    engine, pair = _engine(name), Pair(fixed, _moving(truth, _bend), truth)
    settings = replace(next(iter(engine.presets.values())), **COARSE.get(name, {}), **SHORT.get(name, {}))

    def roughness(chosen):
        return regularity(engine.run(pair, chosen, RUNTIME).forward, pair.fixed_foreground).std_jacobian

    assert roughness(replace(settings, **SMOOTHER[name])) < 0.8 * roughness(settings)


def test_a_program_gives_the_same_bits_again(program, fixed, truth):
    engine, settings = program
    pair = Pair(fixed, _moving(truth, _bend), truth)
    one, other = (engine.run(pair, settings, RUNTIME).forward.vectors for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_syn_keeps_the_affine_it_is_given(tmp_path, fixed, truth):
    options = ants_process.AntsOptions("SyNOnly", reg_iterations=(1, 0, 0))
    result = ants_process.run_ants(fixed, _moving(truth, _bend), options, tmp_path, RUNTIME, affine=truth)
    np.testing.assert_allclose(result.affine, truth, atol=1e-4)


@pytest.mark.parametrize(("name", "changes"), [*SHORT.items(), *(("niftyreg", way) for way in NIFTYREG_WAYS)])
def test_a_program_leaves_a_lesion_out_of_the_similarity(name, changes, fixed, truth):
    engine = _engine(name)
    settings = replace(next(iter(engine.presets.values())), **changes)
    moving = _moving(truth, _bend, lesion=True)
    mask = nib.Nifti1Image(_lesion(moving).astype(np.uint8), moving.affine)
    clean = engine.run(Pair(fixed, _moving(truth, _bend), truth), settings, RUNTIME)
    spoiled = engine.run(Pair(fixed, moving, truth), settings, RUNTIME)
    spared = engine.run(Pair(fixed, moving, truth, lesion_mask=mask), settings, RUNTIME)

    def distance(result):
        apart = np.abs(result.forward.vectors - clean.forward.vectors)
        return apart[:, fixed.get_fdata() > 40].mean()

    assert distance(spared) < 0.7 * distance(spoiled)


def test_convexadam_refuses_a_lesion_that_it_could_not_leave_out(fixed):
    with pytest.raises(InputError, match="convexadam cannot leave a lesion out"):
        convexadam.CONVEXADAM.run(
            Pair(fixed, fixed, np.eye(4), lesion_mask=fixed), convexadam.ConvexAdamSettings(), RUNTIME
        )


@pytest.mark.parametrize(
    ("kind", "bad"),
    [(syn.SynSettings, {"metric": "MeanSquares"}), (syn.SynSettings, {"sampling": 0}),
     (syn.SynSettings, {"update_variance": -1}), (syn.SynSettings, {"field_variance": float("nan")}),
     (greedy.GreedySettings, {"radius": 0}),
     (greedy.GreedySettings, {"update_smoothing_mm": 0.0}),
     (niftyreg.NiftyRegSettings, {"similarity": "ssd"}), (niftyreg.NiftyRegSettings, {"lncc_sigma_voxels": 0}),
     (niftyreg.NiftyRegSettings, {"spacing_voxels": float("nan")}), (niftyreg.NiftyRegSettings, {"levels": 0}),
     (niftyreg.NiftyRegSettings, {"bending_energy": -0.1}), (niftyreg.NiftyRegSettings, {"linear_energy": 1}),
     (niftyreg.NiftyRegSettings, {"iterations": 0}),
     (convexadam.ConvexAdamSettings, {"smoothness": 0}), (convexadam.ConvexAdamSettings, {"smoothing": 2}),
     (convexadam.ConvexAdamSettings, {"grid_spacing": 0}), (convexadam.ConvexAdamSettings, {"iterations": 0}),
     (convexadam.ConvexAdamSettings, {"voxel_size_mm": -1})]
    + [(kind, {"iterations": counts}) for kind in (syn.SynSettings, greedy.GreedySettings) for counts in ((0, 0), ())],
)  # fmt: skip
def test_settings_of_programs_refuse_nonsense(kind, bad):
    with pytest.raises(ValueError, match="expected"):
        kind(**bad)


@pytest.mark.parametrize(
    ("name", "module", "package"), [("greedy", greedy, "picsl-greedy"), ("convexadam", convexadam, "convexAdam")]
)
def test_a_program_that_is_not_installed_says_how_to_get_it(name, module, package, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"{name} cannot be used here: .*pip install {package}`"):
        choose_method(name)


def _fake(folder: Path, f3d: str, transform: str = "") -> Path:
    """Programs in the place of NiftyReg's; what they do beside telling their version is Python."""
    folder.mkdir(parents=True)
    for name, script in (("reg_f3d", f3d), ("reg_transform", transform)):
        version = f"if sys.argv[1:] == ['--version']: sys.exit(print('{folder.name}', os.environ['LD_LIBRARY_PATH']))"
        (folder / name).write_text(f"#!{sys.executable}\nimport os, sys\n{version}\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def test_niftyreg_is_found_by_its_variable_then_on_path_then_as_a_package(tmp_path, monkeypatch):
    places = {name: _fake(tmp_path / name / "bin", "") for name in ("named", "path", "package")}
    package = tmp_path / "package" / "__init__.py"
    monkeypatch.setattr(niftyreg, "find_spec", lambda name: SimpleNamespace(origin=str(package)))
    monkeypatch.setenv("PATH", str(places["path"]), prepend=os.pathsep)
    for named in (tmp_path / "named", places["named"]):
        monkeypatch.setenv("NIFTYREGDIR", str(named))
        # A folder of libraries beside the programs' own serves them.
        assert niftyreg.NIFTYREG.fingerprint(None).startswith(f"niftyreg-bin {tmp_path / 'named' / 'lib'}")
    monkeypatch.delenv("NIFTYREGDIR")
    assert str(tmp_path / "path" / "lib") in niftyreg.NIFTYREG.fingerprint(None)
    (places["path"] / "reg_transform").unlink()
    assert str(tmp_path / "package" / "lib") in niftyreg.NIFTYREG.fingerprint(None)
    assert niftyreg.NIFTYREG.available() is None


def test_niftyreg_that_is_missing_or_does_not_run_says_how_to_get_it(tmp_path, monkeypatch):
    ways = r".*NIFTYREGDIR, or .* PATH, or .*pip install niftyreg"
    monkeypatch.setenv("NIFTYREGDIR", str(tmp_path))
    with pytest.raises(InputError, match=f"NIFTYREGDIR is {tmp_path}, which holds no reg_f3d{ways}"):
        choose_method("niftyreg")
    (_fake(tmp_path / "bin", "") / "reg_f3d").write_text("#!/nowhere/interpreter\n")
    with pytest.raises(InputError, match=f"reg_f3d does not run on this machine{ways}"):
        choose_method("niftyreg")


WRITE = "import nibabel, numpy; g = nibabel.load('fixed.nii'); v = numpy.zeros((*g.shape, 1, 3)); print('last words')"


@pytest.mark.parametrize(
    ("f3d", "transform", "message"),
    [
        (
            "print('last words', flush=True); os.kill(os.getpid(), 11)",
            "",
            "last words.*reg_f3d was killed by signal 11",
        ),
        ("sys.exit('last words')", "", "last words.*reg_f3d ended with status 1"),
        ("print('last words')", "", "last words.*reg_f3d ended with status 0 and wrote no result"),
        ("open('grid.nii', 'w')", "print('last words')", "reg_transform ended with status 0 and wrote no result"),
        (
            "open('grid.nii', 'w')",
            f"{WRITE}; v[3, 4, 5] = numpy.nan; nibabel.Nifti1Image(v, g.affine).to_filename('field.nii')",
            "last words.*NaN",
        ),
    ],
)
def test_a_niftyreg_that_fails_shows_the_end_of_its_output(f3d, transform, message, tmp_path, fixed, monkeypatch):
    monkeypatch.setenv("NIFTYREGDIR", str(_fake(tmp_path / "bin", f3d, transform)))
    with pytest.raises(ProgramError, match=f"(?s)NiftyReg ended with status 1.*{message}"):
        niftyreg.NIFTYREG.run(Pair(fixed, fixed, np.eye(4)), niftyreg.NiftyRegSettings(), RUNTIME)


def test_a_failing_child_shows_the_end_of_its_output(tmp_path, fixed):
    with pytest.raises(ProgramError, match=r"(?s)ended with status 1.*NoSuchTransform does not exist"):
        ants_process.run_ants(fixed, fixed, ants_process.AntsOptions("NoSuchTransform"), tmp_path, RUNTIME)


def test_a_killed_child_is_named_as_such(tmp_path, fixed, monkeypatch):
    killer = tmp_path / "python"
    killer.write_text(f"#!/bin/sh\necho last words\nkill -{signal.SIGKILL.value} $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killer))
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ProgramError, match=r"(?s)killed by signal 9.*out of memory.*last words"):
        ants_process.run_ants(fixed, fixed, ants_process.AntsOptions("Affine"), folder, RUNTIME)
