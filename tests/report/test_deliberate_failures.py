"""Quality control of real scans that were spoilt on purpose: each is refused or flagged. Good ones pass."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import affine_transform

from nio_pydra.bids.qc import judge
from nio_pydra.bids.records import Result
from nio_pydra.engines import affine
from nio_pydra.engines.chain import register_pair
from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.engines.methods import choose_method
from nio_pydra.errors import InputError

STEP = 3  # mm; quick, and enough for an affine
GOOD, OTHER = "sub-1006", "sub-1036"


def load(real_data: Path, subject: str) -> nib.Nifti1Image:
    """Return every third voxel of a scan of 1 mm, skull-stripped."""
    (path,) = (real_data / "oasis_malf" / subject).rglob("*_T1w.nii.gz")
    image = nib.load(path)
    voxels = np.asarray(image.dataobj, np.float32)[::STEP, ::STEP, ::STEP]
    return nib.Nifti1Image(voxels, image.affine @ np.diag([STEP, STEP, STEP, 1]))


def turned(voxels):
    """Lay the head on its side: the header says nothing of it."""
    angle = np.radians(80)
    turn = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    centre = (np.array(voxels.shape) - 1) / 2
    return affine_transform(voxels, turn, centre - turn @ centre, order=1)


def only(voxels, axis, thickness_mm):
    """Keep a slab in the middle of the brain."""
    filled = np.flatnonzero((voxels > 0).any(axis=tuple({0, 1, 2} - {axis})))
    middle, half = (filled[0] + filled[-1]) // 2, round(thickness_mm / STEP / 2)
    kept = np.zeros(voxels.shape, bool)
    kept[(slice(None),) * axis + (slice(middle - half, middle + half),)] = True
    return voxels * kept


def half(voxels):
    kept = voxels.copy()
    kept[: voxels.shape[0] // 2] = 0
    return kept


def noise(voxels):
    return np.where(voxels > 0, np.abs(np.random.default_rng(0).normal(300, 80, voxels.shape)), 0)


def same(voxels):
    return voxels


def moved_mask(own, other):
    return np.roll(own, 30 // STEP, axis=1)


def masks_of_other(own, other):
    mask = np.zeros_like(own)
    box = tuple(slice(0, min(sizes)) for sizes in zip(own.shape, other.shape, strict=True))
    mask[box] = other[box]
    return mask


SPOILT = {
    "turned head": (turned, None),
    "half a brain": (half, None),
    "slab of 40 mm": (lambda voxels: only(voxels, 2, 40), None),
    "noise": (noise, None),
    "mask moved by 30 mm": (same, moved_mask),
    "mask of another person": (same, masks_of_other),
}


@pytest.fixture
def verdict(real_data, tmp_path, monkeypatch, write_image):
    """Function that registers a scan by the affine alone and returns the verdict."""
    monkeypatch.setattr(affine, "SEARCHES", ())  # they would only find out more slowly that nothing helps
    atlas = nib.load(real_data / "atlas/antspy_mni.nii.gz")
    small = write_image(
        np.asarray(atlas.dataobj, np.float32)[::STEP, ::STEP, ::STEP],
        tmp_path / "atlas.nii.gz",
        atlas.affine @ np.diag([STEP, STEP, STEP, 1]),
    )

    def judged(subject, spoil=same, make_mask=None):
        image = load(real_data, subject)
        own = np.asarray(image.dataobj)
        scan = ScanFiles(
            write_image(np.float32(spoil(own)), tmp_path / "scan.nii.gz", image.affine), skull_stripped=True
        )
        if make_mask is not None:
            mask = make_mask(own > 0, np.asarray(load(real_data, OTHER).dataobj) > 0)
            scan = replace(scan, mask=write_image(np.uint8(mask), tmp_path / "mask.nii.gz", image.affine))
        try:
            record = register_pair(
                ScanFiles(small, skull_stripped=True),
                scan,
                tmp_path / "out",
                choose_method("affine"),
                runtime=Runtime(device="cpu"),
            )
        except InputError:
            return "fail"
        result = Result("sub-x_space-A_desc-affine", {"sub": "x", "space": "A", "desc": "affine"}, record)
        return judge([result])[result.name].status

    return judged


@pytest.mark.slow
@pytest.mark.parametrize("subject", [GOOD, OTHER])
def test_good_scan_passes(verdict, subject):
    assert verdict(subject) == "pass"


@pytest.mark.slow
@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_scan_is_flagged(verdict, name):
    assert verdict(GOOD, *SPOILT[name]) in ("look", "fail")
