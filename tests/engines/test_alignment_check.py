"""An affine that does not bring two brains onto each other is refused; an unusual image is not."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from nio_pydra.engines import affine
from nio_pydra.engines.affine import align_images
from nio_pydra.engines.alignment_check import check_alignment, match_of
from nio_pydra.engines.contract import Runtime, foreground_only
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN
from nio_pydra.spatial.images import load_image
from nio_pydra.spatial.transforms import Transform, resample

RUNTIME = Runtime(device="cpu", threads=1)
CORNERS = np.array(np.meshgrid([-60, 60], [-80, 80], [-50, 50], [1])).reshape(4, -1)
"""Of a brain, in mm."""
NAMES = Path("atlas.nii.gz"), Path("sub-7_T1w.nii.gz")


def coarse(path, mm=3.0):
    """A skull-stripped scan in larger voxels."""
    image = load_image(path)
    factor = mm / np.linalg.norm(image.affine[:3, :3], axis=0)
    shape = np.ceil(np.array(image.shape) / factor).astype(int)
    grid = nib.Nifti1Image(np.zeros(shape, np.uint8), image.affine @ np.diag([*factor, 1]))
    return resample(image, grid, Transform(()))


@pytest.fixture(scope="module")
def brains(real_data):
    """An atlas and the scan of a person of whom it knows nothing."""
    scan = real_data / "oasis_malf/sub-1001/anat/sub-1001_T1w.nii.gz"
    return coarse(real_data / "atlas/antspy_mni.nii.gz"), coarse(scan)


def turned(image, axes, degrees):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler(axes, degrees, degrees=True).as_matrix()
    return nib.Nifti1Image(np.asanyarray(image.dataobj), turn @ image.affine)


@pytest.mark.slow
@pytest.mark.parametrize(("axes", "degrees"), [("x", [90]), ("z", [180]), ("xyz", [73, -10, 40])])
def test_a_brain_that_is_turned_by_any_angle_is_aligned(brains, axes, degrees):
    expected = align_images(*brains, RUNTIME, names=NAMES)
    found = align_images(brains[0], turned(brains[1], axes, degrees), RUNTIME, names=NAMES)
    assert expected.starts == 1 and 1 < found.starts <= 1 + len(affine.SEARCHES)
    turn = turned(nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)), axes, degrees).affine
    assert np.linalg.norm(((found.affine - turn @ expected.affine) @ CORNERS)[:3], axis=0).max() < 1.5


@pytest.mark.parametrize(("axis", "degrees"), [("x", 60), ("x", 90), ("y", 180), ("z", 90), ("z", 180)])
def test_a_brain_that_is_aligned_the_wrong_way_round_is_refused_with_both_names(brains, monkeypatch, axis, degrees):
    monkeypatch.setattr(affine, "SEARCHES", ())
    reason = r"sub-7_T1w\.nii\.gz could not be aligned to atlas\.nii\.gz: their similarity at 4 mm is 0\.[012]\d\d,"
    with pytest.raises(InputError, match=reason):
        align_images(brains[0], turned(brains[1], axis, degrees), RUNTIME, names=NAMES)


def unusual(brain, kind):
    """The same brain with another look."""
    voxels = np.asanyarray(brain.dataobj)
    inside, rng = voxels > 0, np.random.default_rng(0)
    if kind == "noise":
        voxels = voxels + rng.normal(0, 0.15 * voxels.max(), voxels.shape)
    elif kind == "bias field":
        bias = gaussian_filter(rng.normal(size=voxels.shape), 8)
        voxels = voxels * np.exp(bias / np.abs(bias).max())
    elif kind == "inverted":
        voxels = 1.05 * voxels.max() - voxels
    elif kind == "standardised":
        voxels = (voxels - voxels[inside].mean()) / voxels[inside].std()
    image = nib.Nifti1Image(np.where(inside, voxels, 0).astype(np.float32), brain.affine)
    return foreground_only(turned(image, "x", 20), nib.Nifti1Image(inside.astype(np.uint8), brain.affine))


@pytest.mark.parametrize("kind", ["as it is", "noise", "bias field", "inverted", "standardised"])
def test_an_unusual_image_of_a_brain_is_aligned(brains, kind):
    moving = unusual(brains[1], kind)
    found = align_images(brains[0], moving, RUNTIME, names=NAMES)
    overlap, match = match_of(brains[0], moving, found.affine)
    assert overlap > 0.85 and match > BRAIN.smallest_match + 0.05


def test_a_standardised_brain_lands_where_the_same_brain_does(brains):
    found = [
        align_images(brains[0], unusual(brains[1], kind), RUNTIME, names=NAMES).affine
        for kind in ("as it is", "standardised")
    ]
    assert np.linalg.norm(((found[0] - found[1]) @ CORNERS)[:3], axis=0).max() < 1.5


def ball(noise=0.0):
    """A ball of texture, 2 mm."""
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.random((40, 44, 38)), 3)
    texture = 1 + (texture - texture.mean()) / texture.std() / 4 + noise * rng.normal(size=texture.shape)
    radius = np.linalg.norm(
        np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in texture.shape], indexing="ij")), axis=0
    )
    return nib.Nifti1Image(
        np.where(radius < 16, np.maximum(texture, 0.05), 0).astype(np.float32), np.diag([2, 2, 2, 1])
    )


def test_a_brain_beside_the_other_is_refused():
    aside = np.eye(4)
    aside[0, 3] = 40
    check_alignment(ball(), ball(0.1), np.eye(4), names=NAMES)
    with pytest.raises(InputError, match=r"it covers \d+ % of that brain, expected at least 50 %"):
        check_alignment(ball(), ball(), aside, names=NAMES)
    aside[0, 3] = 5_361_000
    with pytest.raises(InputError, match="it covers 0 % of that brain"):
        check_alignment(ball(), ball(), aside, names=NAMES)


def test_a_lesion_is_not_compared():
    clean, spoiled = ball(), np.array(ball().dataobj)
    lesion = np.zeros(spoiled.shape, np.uint8)
    lesion[12:28, 12:32, 10:28] = 1
    spoiled[lesion > 0] = np.random.default_rng(1).random(int(lesion.sum()))
    spoiled = nib.Nifti1Image(spoiled, clean.affine)
    matches = [match_of(clean, spoiled, np.eye(4), mask)[1] for mask in (None, nib.Nifti1Image(lesion, clean.affine))]
    assert matches[1] > 1.5 * matches[0]
