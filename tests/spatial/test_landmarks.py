"""Landmarks of every format come out at the same place, and unusable files are refused with one sentence."""

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.errors import InputError
from nio_pydra.metrics import landmark_errors
from nio_pydra.spatial.landmarks import read_landmarks, read_pair
from nio_pydra.spatial.transforms import Transform, apply_affine

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 0, 1.5, -9], [0, -3, 0, 40], [0, 0, 0, 1]])  # turned and mirrored
IMAGE = nib.Nifti1Image(np.zeros((12, 14, 16), np.float32), AFFINE)
VOXELS = np.array([[0, 0, 0], [11, 13, 15], [3, 7, 2]])
WORLD = apply_affine(AFFINE, VOXELS.astype(float))


def text(rows, separator=" "):
    return "\n".join(separator.join(f"{value:g}" for value in row) for row in rows) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dirlab.txt", text(VOXELS + 1, "\t")),
        ("learn2reg.csv", text(VOXELS, ",")),
        ("voxels.csv", "i,j,k\n" + text(VOXELS, ", ")),
        ("world.csv", "x,y,z\n" + text(WORLD, ",")),
        ("elastix_point.txt", "point\n3\n" + text(WORLD * [-1, -1, 1])),
        ("elastix_index.pts", "index\n3\n" + text(VOXELS)),
        ("blank_lines.csv", "\ufeffi,j,k\r\n\r\n" + text(VOXELS, ",").replace("\n", "\r\n")),
    ],
)
def test_every_format_gives_the_same_places(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert np.allclose(read_landmarks(tmp_path / name, IMAGE), WORLD)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.txt", None, "no such file"),
        ("empty.txt", "\n\n", "is empty"),
        ("binary.txt", b"\xff\xfe\x00\x81", "cannot be read as text"),
        ("header_only.csv", "i,j,k\n", "holds no landmarks"),
        ("words.txt", "1 2 3\n1 two 3\n", r"line 2, holds '1 two 3'"),
        ("nan.csv", "1,2,3\n1,nan,3\n", r"line 2, holds '1,nan,3'"),
        ("pairs.txt", "1 2 3 4 5 6\n", r"line 1, holds '1 2 3 4 5 6' \(6 columns\)"),
        ("ants.csv", "x,y,z,t\n1,2,3,0\n", r"line 1, holds 'x,y,z,t' \(4 columns\)"),
        ("spaces.csv", "1 2 3\n", r"\(1 columns\)"),
        ("mm.txt", "1.5 2 3\n", "not whole numbers"),
        ("short.txt", "point\n3\n1 2 3\n", "'3' in its second line and 1 lines after it"),
        ("from_zero.txt", "0 1 1\n5 5 5\n", r"1 of 2 landmarks outside .* voxel \(-1\.0, 0\.0, 0\.0\)"),
        ("outside.csv", "1,1,1\n1,14,1\n", r"landmark 2 would be voxel \(1\.0, 14\.0, 1\.0\) .* \(12, 14, 16\)"),
    ],
)
def test_unusable_landmarks_are_named_with_the_reason(tmp_path, name, content, reason):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_landmarks(path, IMAGE)
    assert str(path) in str(caught.value)


def test_files_of_different_length_are_no_pair(tmp_path):
    (tmp_path / "a.txt").write_text("1 1 1\n2 2 2\n")
    (tmp_path / "b.csv").write_text("1,1,1\n")
    with pytest.raises(InputError, match=r"a\.txt holds 2 landmarks and .*b\.csv 1: expected the same number"):
        read_pair(tmp_path / "a.txt", IMAGE, tmp_path / "b.csv", IMAGE)


def test_learn2reg_landmarks_lie_in_the_lungs(real_data):
    """A wrong order or direction of the axes puts them elsewhere."""
    folder = real_data / "lung" / "l2r_lungct_geometry"
    for case in (1, 2, 3):
        mask = nib.load(folder / "masksTr" / f"LungCT_{case:04}_0000.nii.gz")
        points = read_landmarks(folder / "landmarksTr" / f"LungCT_{case:04}_0000.csv", mask)
        voxels = np.rint(apply_affine(np.linalg.inv(mask.affine), points)).astype(int)
        assert (np.asanyarray(mask.dataobj)[tuple(voxels.T)] > 0).mean() > 0.95


def test_elastix_landmarks_are_as_far_apart_as_published(real_data):
    sitk = pytest.importorskip("SimpleITK")
    folder = real_data / "lung" / "elastix_pair"

    def image(name):
        grid = sitk.ReadImage(str(folder / name))
        affine = np.diag([*(np.array(grid.GetSpacing()) * [-1, -1, 1]), 1])
        affine[:3, 3] = np.array(grid.GetOrigin()) * [-1, -1, 1]
        return nib.Nifti1Image(np.zeros(grid.GetSize(), np.uint8), affine)

    fixed, moving = image("3DCT_lung_baseline_mask.mha"), image("3DCT_lung_followup_mask.mha")
    files = [folder / f"CT_3D_lung_{role}_point_set_corrected.txt" for role in ("fixed", "moving")]
    points = read_pair(files[0], fixed, files[1], moving)
    assert landmark_errors(*points, Transform(()), moving).errors.mean() == pytest.approx(35.3, abs=0.05)
