"""What all engines are given: brains on a background that is the darkest value."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.engines.contract import Pair, foreground_only, inside
from nio_pydra.engines.quality import quality
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN
from nio_pydra.spatial.transforms import Transform

VOXELS = np.random.default_rng(0).uniform(1, 9, (6, 7, 8)).astype(np.float32)
MASK = np.zeros(VOXELS.shape, np.uint8)
MASK[1:5, 1:6, 1:7] = 1


def image(array):
    return nib.Nifti1Image(array, np.eye(4))


def test_an_image_without_negative_voxels_is_masked_and_nothing_else():
    np.testing.assert_array_equal(foreground_only(image(VOXELS), image(MASK)).get_fdata(), np.where(MASK, VOXELS, 0))


@pytest.mark.parametrize("masked", [True, False])
def test_the_background_of_a_standardised_brain_is_its_darkest_value(masked):
    standardised = np.where(MASK, VOXELS - VOXELS.mean(), 0).astype(np.float32)
    found = foreground_only(image(standardised), image(MASK) if masked else None).get_fdata()
    assert (found[MASK == 0] == 0).all() and found.min() == 0
    np.testing.assert_allclose(np.diff(found[MASK > 0]), np.diff(VOXELS[MASK > 0]), atol=1e-5)


def test_an_empty_brain_is_refused():
    with pytest.raises(InputError, match="is zero in all of its brain mask"):
        foreground_only(image(np.where(MASK, 0, VOXELS)), image(MASK))


def test_negative_voxels_of_a_brain_without_a_mask_count_as_brain():
    standardised = np.where(MASK, VOXELS - 5, 0).astype(np.float32)
    assert (inside(image(standardised), None) == (standardised != 0)).all()
    assert Pair(image(standardised), image(VOXELS), np.eye(4)).fixed_foreground.sum() == (standardised != 0).sum()


def test_intensities_beyond_the_profiles_window_are_clipped():
    window = (float(np.percentile(VOXELS[MASK > 0], 30)), float(np.percentile(VOXELS[MASK > 0], 60)))
    found = foreground_only(image(VOXELS), image(MASK), replace(BRAIN, intensity_window=window)).get_fdata()
    np.testing.assert_allclose(found, np.where(MASK, np.clip(VOXELS, *window) - min(0, window[0]), 0), rtol=1e-6)
    assert np.unique(found).size < np.unique(np.where(MASK, VOXELS, 0)).size


@pytest.mark.parametrize("window", [None, (-1.0, 3.0), (-2.0, 2.0)])
def test_an_image_matches_itself_whatever_its_profile_makes_of_its_intensities(window):
    profile = replace(BRAIN, intensity_window=window)
    scans, masks = [image(VOXELS - 5)] * 2, [image(MASK)] * 2
    still = Transform((np.eye(4),))
    found = quality(Pair(*scans, np.eye(4), *masks, profile=profile), (still, still))["similarity"]
    assert found["before"] == found["after"] == pytest.approx(1, abs=1e-4)
