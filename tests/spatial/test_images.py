"""Unusable images are refused with one sentence that says why."""

import errno
import gzip

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.errors import ComputationError, InputError
from nio_pydra.spatial.images import load_image, load_labels, load_mask, save_image
from nio_pydra.system.files import atomic_path

GOOD = np.arange(1, 61, dtype=np.float32).reshape(3, 4, 5)


def write(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64])
def test_what_nibabel_reads_is_read(tmp_path, name, dtype):
    path = write(tmp_path / name, GOOD.astype(dtype)[..., None])
    assert np.array_equal(load_image(path).get_fdata(), GOOD)


def spoiled(tmp_path, kind):
    path = tmp_path / "bad.nii.gz"
    if kind == "absent":
        return path
    if kind == "empty":
        path.touch()
        return path
    if kind == "text":
        path.write_text("this is no image")
        return path
    if kind == "truncated":
        noise = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
        whole = write(path, noise).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        return path
    arrays = {
        "4-D": np.ones((3, 4, 5, 6), np.float32),
        "2-D": np.ones((3, 4), np.float32),
        "slice": np.ones((3, 4, 1), np.float32),
        "nan": np.where(GOOD == 7, np.nan, GOOD),
        "inf": np.where(GOOD == 7, np.inf, GOOD),
        "zero": np.zeros((3, 4, 5), np.float32),
    }
    if kind in arrays:
        return write(path, arrays[kind].astype(np.float32))
    image = nib.Nifti1Image(GOOD, None)
    image.header.set_sform(np.zeros((4, 4)) if kind == "zero affine" else np.diag([1, 1, 0, 1]), 1)
    image.header["qform_code"] = 0
    with gzip.open(path, "wb") as file:
        file.write(image.header.binaryblock + bytes(4) + GOOD.tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "no such file"),
        ("empty", "0 bytes"),
        ("text", "cannot be read"),
        ("truncated", "truncated or damaged"),
        ("4-D", "expected a 3-D image"),
        ("2-D", "expected a 3-D image"),
        ("slice", "localizer"),
        ("nan", "1 NaN or infinite"),
        ("inf", "1 NaN or infinite"),
        ("zero", "zero everywhere"),
        ("zero affine", "cannot be inverted"),
        ("singular affine", "cannot be inverted"),
    ],
)
def test_unusable_image_is_named_with_the_reason(tmp_path, kind, reason):
    path = spoiled(tmp_path, kind)
    with pytest.raises(InputError, match=reason) as caught:
        load_image(path, "T1w")
    assert str(path) in str(caught.value) and "T1w" in str(caught.value)


def test_labels_on_another_grid_are_refused(tmp_path):
    image = nib.Nifti1Image(GOOD, np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    for array, affine in ((np.ones((3, 4, 6), np.int16), np.eye(4)), (np.ones((3, 4, 5), np.int16), shifted)):
        path = write(tmp_path / "labels.nii.gz", array, affine)
        with pytest.raises(InputError, match="same grid"):
            load_labels(path, like=image)
    with pytest.raises(InputError, match="whole numbers"):
        load_labels(write(tmp_path / "fractions.nii.gz", GOOD / 7))


@pytest.mark.parametrize(("dtype", "label"), [(np.uint32, 3_000_000_000), (np.float64, -3e9), (np.int64, 2**40)])
def test_labels_that_do_not_fit_are_refused(tmp_path, dtype, label):
    array = np.zeros((3, 4, 5), dtype)
    array[1, 1, 1] = label
    image = nib.Nifti1Image(array, np.eye(4), dtype=dtype)
    nib.save(image, tmp_path / "labels.nii.gz")
    with pytest.raises(
        InputError, match=rf"labels\.nii\.gz .* from .*{abs(label):.0f}.*: expected numbers from -2147483648"
    ):
        load_labels(tmp_path / "labels.nii.gz")


def test_an_image_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ComputationError, match=r"out\.nii\.gz holds 1 NaN or infinite numbers"):
        save_image(np.where(GOOD == 7, np.nan, GOOD), np.eye(4), tmp_path / "out.nii.gz")
    assert not list(tmp_path.iterdir())


def test_a_mask_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"mask\.nii\.gz .* NaN or infinite voxels: expected 0 and 1"):
        load_mask(write(tmp_path / "mask.nii.gz", np.where(GOOD == 7, np.nan, 1).astype(np.float32)))


def test_an_empty_mask_is_refused(tmp_path):
    with pytest.raises(InputError, match="is empty"):
        load_mask(write(tmp_path / "mask.nii.gz", np.zeros((3, 4, 5), np.uint8)))


def test_nothing_is_left_where_writing_fails(tmp_path):
    with pytest.raises(TypeError):
        save_image(np.array([[[object()]]]), np.eye(4), tmp_path / "out.nii.gz")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save_image(GOOD, np.eye(4), tmp_path / "file" / "out.nii.gz")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    def fill():
        with atomic_path(tmp_path / "out.txt") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"The disk with the folder .* is full: make room there"):
        fill()
    assert not list(tmp_path.iterdir())
