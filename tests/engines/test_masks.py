"""Brain masks from skull-stripped scans and from whole heads."""

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.masks import make_mask
from nio_pydra.errors import InputError, ProgramError

RUNTIME = Runtime(device="cpu", threads=2)


def _ball(radius_mm: float) -> np.ndarray:
    """A ball on a (40, 40, 40) grid of 5 mm, with a hole at its centre."""
    distance = np.linalg.norm(np.moveaxis(np.indices((40, 40, 40)), 0, -1) * 5.0 - 100, axis=-1)
    data = np.where(distance < radius_mm, 100.0, 0.0).astype(np.float32)
    data[19:22, 19:22, 19:22] = 0
    return data


def _save(data, path, affine=None):
    nib.save(nib.Nifti1Image(data, np.diag([-5.0, 5, 5, 1]) if affine is None else affine), path)
    return path


def test_a_skull_stripped_scan_gives_its_own_mask_with_holes_filled(tmp_path):
    data = _ball(60)
    image = _save(data, tmp_path / "brain.nii.gz")
    out = make_mask(image, tmp_path / "mask.nii.gz", RUNTIME, skull_stripped=True)
    mask = nib.load(out)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, nib.load(image).affine)
    filled = np.asanyarray(mask.dataobj)
    assert filled[20, 20, 20] == 1
    assert filled.sum() == (data > 0).sum() + 27


@pytest.mark.parametrize(("radius", "found"), [(30, r"0\.1\d litres"), (98, r"3\.\d\d litres")])
def test_a_mask_of_no_brains_size_is_refused(tmp_path, radius, found):
    image = _save(_ball(radius), tmp_path / "sub-3_T1w.nii.gz")
    with pytest.raises(InputError, match=rf"sub-3_T1w\.nii\.gz.*{found}"):
        make_mask(image, tmp_path / "mask.nii.gz", RUNTIME, skull_stripped=True)
    assert not (tmp_path / "mask.nii.gz").exists()


def test_a_standardised_brain_with_negative_voxels_is_kept_whole(tmp_path):
    ball = _ball(60)
    image = _save(np.where(ball > 0, ball - 1.5 * ball.max(), 0), tmp_path / "negative.nii.gz")
    out = make_mask(image, tmp_path / "mask.nii.gz", RUNTIME, skull_stripped=True)
    mask = nib.load(out).get_fdata() > 0
    assert mask[ball > 0].all() and not mask[0].any()


@pytest.mark.slow
def test_deepbet_finds_the_brain_of_a_whole_head_whatever_its_orientation(tmp_path, real_data):
    path = real_data / "heads" / "chris_t1.nii.gz"
    if not path.exists():
        pytest.skip(f"no whole head at {path}")
    head = nib.load(path)
    turn = nib.orientations.ornt_transform(nib.io_orientation(head.affine), nib.orientations.axcodes2ornt("PIL"))
    turned = head.as_reoriented(turn)
    nib.save(turned, tmp_path / "turned.nii.gz")
    masks = []
    for image in (path, tmp_path / "turned.nii.gz"):
        out = make_mask(image, tmp_path / "mask.nii.gz", RUNTIME)
        mask = nib.load(out)
        assert mask.shape == nib.load(image).shape
        np.testing.assert_allclose(mask.affine, nib.load(image).affine, atol=1e-4)
        masks.append(np.asanyarray(mask.as_reoriented(nib.io_orientation(mask.affine)).dataobj))
    litres = masks[0].sum() * abs(np.linalg.det(head.affine[:3, :3])) / 1e6
    assert 1.3 < litres < 1.8
    centre = np.array(head.shape) // 2
    assert masks[0][tuple(centre)] == 1  # deep brain
    assert masks[0][0].sum() == 0 and masks[0][:, :, -1].sum() == 0  # ear and scalp
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > 0.999


def test_deepbet_on_an_image_without_a_head_is_a_clear_error(tmp_path):
    noise = np.random.default_rng(0).uniform(0, 1, (40, 40, 40)).astype(np.float32)
    image = _save(noise, tmp_path / "noise.nii.gz")
    with pytest.raises(InputError, match=r"noise\.nii\.gz: found"):
        make_mask(image, tmp_path / "mask.nii.gz", RUNTIME)


def test_an_error_of_deepbet_is_not_called_an_image_without_a_brain(tmp_path, monkeypatch):
    import deepbet

    def fail(*_arguments, **_options):
        raise ValueError("a tensor of another kind")

    monkeypatch.setattr(deepbet.BrainExtraction, "run", fail)
    image = _save(_ball(60), tmp_path / "head.nii.gz")
    with pytest.raises(ProgramError, match=r"head\.nii\.gz: brain extraction by deepbet failed: a tensor of another"):
        make_mask(image, tmp_path / "mask.nii.gz", RUNTIME)
