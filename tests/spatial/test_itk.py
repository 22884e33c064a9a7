"""Transform files, checked with the programs that will read them."""

import h5py
import nibabel as nib
import numpy as np
import pytest

from nio_pydra.errors import ComputationError, InputError
from nio_pydra.spatial.itk import read_affine, read_h5, write_h5
from nio_pydra.spatial.transforms import DisplacementField, Transform, resample


def turned(degrees: float, spacing: tuple[float, float, float], origin: tuple[float, float, float]) -> np.ndarray:
    """Oblique voxel-to-world matrix: turned about two axes."""
    a, b = np.radians([degrees, degrees / 2])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_x @ np.diag(spacing)
    matrix[:3, 3] = origin
    return matrix


@pytest.fixture
def case():
    """Anisotropic, oblique, differently oriented images, and a transform with an affine and a curved field."""
    rng = np.random.default_rng(0)
    fixed_affine = turned(25, (1.0, 1.3, 3.0), (-20, -31, -30)) @ np.diag([-1, 1, 1, 1])
    moving_affine = turned(-15, (1.7, 0.9, 1.2), (-65, -35, -25))[:, [1, 2, 0, 3]]
    fixed = nib.Nifti1Image(rng.random((42, 45, 20)).astype(np.float32), fixed_affine)
    smooth = rng.random((60, 50, 64))
    for axis in range(3):
        for _ in range(3):
            smooth = (np.roll(smooth, 1, axis) + smooth + np.roll(smooth, -1, axis)) / 3
    moving = nib.Nifti1Image((100 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32), moving_affine)
    index = np.stack(np.meshgrid(*map(np.arange, fixed.shape), indexing="ij"))
    vectors = np.stack([3 * np.sin(index[1] / 7), 2 * np.cos(index[2] / 3), 2 * np.sin(index[0] / 9)])
    matrix = np.eye(4)
    matrix[:3, :3] += rng.normal(0, 0.05, (3, 3))
    matrix[:3, 3] = (4, -3, 2)
    field = DisplacementField(vectors.astype(np.float32), fixed_affine)
    return fixed, moving, Transform((field, matrix))


def inside(fixed, moving, transform):
    """Fixed voxels that land at least a voxel inside the moving image; readers differ at the very border."""
    ones = np.zeros(moving.shape, np.float32)
    ones[1:-1, 1:-1, 1:-1] = 1
    found = resample(nib.Nifti1Image(ones, moving.affine), fixed, transform).get_fdata() > 0.999
    assert found.mean() > 0.2
    return found


def test_what_is_written_is_read_again_within_half_a_thousandth_of_a_voxel(case, tmp_path):
    fixed, _, transform = case
    again = read_h5(write_h5(transform, tmp_path / "x.h5"))
    assert np.abs(again.steps[0].vectors - transform.steps[0].vectors).max() <= 0.5 / 1000
    np.testing.assert_allclose(again.steps[0].affine, fixed.affine, atol=1e-12)
    np.testing.assert_allclose(again.steps[1], transform.steps[1], atol=1e-12)


def test_the_file_of_a_finer_grid_is_more_precise(case, tmp_path):
    fine = DisplacementField(case[2].steps[0].vectors, case[0].affine @ np.diag([0.1, 0.1, 0.1, 1]))
    (again,) = read_h5(write_h5(Transform((fine,)), tmp_path / "x.h5")).steps
    assert np.abs(again.vectors - fine.vectors).max() <= 0.05 / 1000


def test_a_file_takes_less_than_two_bytes_for_each_number_of_a_smooth_field(tmp_path):
    index = np.stack(np.meshgrid(*map(np.arange, (60, 70, 60)), indexing="ij"))
    vectors = np.float32([4 * np.sin(index[0] / 17), 3 * np.cos(index[1] / 13), 5 * np.sin(index[2] / 19)])
    path = write_h5(Transform((DisplacementField(vectors, np.eye(4)),)), tmp_path / "x.h5")
    assert path.stat().st_size < 2 * vectors.size


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_simpleitk_maps_points_as_we_do(case, tmp_path, direction):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK, another reader of these files, is not installed")
    fixed, _, transform = case
    if direction == "backward":
        transform = Transform((np.linalg.inv(transform.steps[1]), transform.steps[0]))
    theirs = sitk.ReadTransform(str(write_h5(transform, tmp_path / "x.h5")))
    points = nib.affines.apply_affine(fixed.affine, np.random.default_rng(0).uniform(8, 12, (200, 3)))
    flip = np.array([-1, -1, 1])
    found = np.array([theirs.TransformPoint(point) for point in (points * flip).tolist()]) * flip
    np.testing.assert_allclose(found, transform.map_points(points), atol=1e-3)
    assert np.linalg.norm(found - points, axis=1).min() > 1


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_ants_resamples_as_we_do(case, tmp_path, direction):
    import ants

    fixed, moving, transform = case
    if direction == "backward":  # affine first, then the field: the order of inverse transforms
        transform = Transform((np.linalg.inv(transform.steps[1]), transform.steps[0]))
    write_h5(transform, tmp_path / "x.h5")
    for image, name in ((fixed, "fixed"), (moving, "moving")):
        nib.save(image, tmp_path / f"{name}.nii.gz")
    theirs = ants.apply_transforms(
        ants.image_read(str(tmp_path / "fixed.nii.gz")),
        ants.image_read(str(tmp_path / "moving.nii.gz")),
        [str(tmp_path / "x.h5")],
        interpolator="linear",
    ).numpy()
    ours = resample(moving, fixed, transform).get_fdata()
    where = inside(fixed, moving, transform)
    assert np.abs(theirs - ours)[where].max() < 1e-3 * np.ptp(moving.get_fdata())
    assert np.abs(ours[where] - moving.get_fdata().mean()).max() > 1


def test_nitransforms_resamples_as_we_do(case, tmp_path):
    from nitransforms.manip import load
    from nitransforms.resampling import apply

    fixed, moving, transform = case
    chain = load(write_h5(transform, tmp_path / "x.h5"), fmt="h5")  # as fMRIPrep does
    theirs = apply(chain, moving, reference=fixed, order=1, prefilter=False).get_fdata()
    ours = resample(moving, fixed, transform).get_fdata()
    where = inside(fixed, moving, transform)
    assert np.abs(theirs - ours)[where].max() < 1e-3 * np.ptp(moving.get_fdata())


def test_affine_of_ants_is_read(tmp_path):
    import ants

    rng = np.random.default_rng(2)
    parameters, centre = rng.normal(0, 0.1, 12), rng.normal(0, 20, 3)
    parameters[[0, 4, 8]] += 1
    theirs = ants.create_ants_transform(
        transform_type="AffineTransform", dimension=3, parameters=parameters, fixed_parameters=centre
    )
    ants.write_transform(theirs, str(tmp_path / "a.mat"))
    point = np.array([10.0, -20.0, 30.0])
    flip = np.array([-1, -1, 1])
    ours = Transform((read_affine(tmp_path / "a.mat"),)).map_points(point[None])[0]
    assert np.allclose(ours, np.array(theirs.apply_to_point(tuple(point * flip))) * flip, atol=1e-4)


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "x.h5"
    with pytest.raises(InputError, match="no such transform"):
        read_h5(path)
    path.write_text("no transform")
    with pytest.raises(InputError, match="not an ITK composite"):
        read_h5(path)


@pytest.mark.parametrize("kind", ["affine", "field"])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path, kind):
    step = np.eye(4) if kind == "affine" else DisplacementField(np.zeros((3, 4, 5, 6), np.float32), np.eye(4))
    path = write_h5(Transform((step,)), tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        file["TransformGroup/1/TransformParameters"][3] = np.nan
    with pytest.raises(InputError, match=r"x\.h5 cannot be used: The .* holds \d+ NaN or infinite numbers"):
        read_h5(path)


def test_a_transform_holds_no_number_that_is_not_finite():
    with pytest.raises(ComputationError, match="The displacement field holds 1 NaN or infinite numbers"):
        DisplacementField(np.where(np.arange(360) == 7, np.inf, 0).reshape(3, 4, 5, 6).astype(np.float32), np.eye(4))
    with pytest.raises(ComputationError, match="The affine"):
        Transform((np.diag([1, 1, np.nan, 1]),))


def test_a_file_of_an_older_itk_with_its_misspelled_names_is_read(case, tmp_path):
    transform = case[2]
    path = write_h5(transform, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        for number, entry in file["TransformGroup"].items():
            for name in ("FixedParameters", "Parameters") if number != "0" else ():
                entry.move(f"Transform{name}", f"Tranform{name}")
    points = np.random.default_rng(0).normal(0, 20, (50, 3))
    np.testing.assert_allclose(read_h5(path).map_points(points), transform.map_points(points), atol=1e-3)
