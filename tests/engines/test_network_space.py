"""A pair in the space of a network: contrasts that differ."""

import logging

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nio_pydra.engines.contract import Pair
from nio_pydra.engines.network_space import NetworkSpace, grid_of


def space_of(fixed, moving, shift=0.0, **options):
    affine = np.eye(4)
    affine[:3, 3] = shift
    pair = Pair(*(nib.Nifti1Image(np.float32(voxels), np.eye(4)) for voxels in (fixed, moving)), affine)
    grid = grid_of(pair, pair.fixed_object, {"orientation": "LIA", "voxel_size_mm": 1.0}, 8)
    return NetworkSpace.of(pair, grid, pair.fixed_object, "percentile", "cpu", **options)


@pytest.fixture
def brains():
    """A textured ball, the same one a little moved, and where the ball is."""
    random = np.random.default_rng(0)
    texture = gaussian_filter(random.normal(size=(40, 48, 40)), 3)
    ball = np.linalg.norm(np.indices(texture.shape) - np.array([20, 24, 20]).reshape(3, 1, 1, 1), axis=0) < 15
    texture = 0.2 + (texture - texture.min()) / np.ptp(texture)
    return np.where(ball, texture, 0), np.where(ball, np.roll(texture, 1, axis=0), 0), ball


def test_a_moving_image_of_opposite_contrast_is_inverted_and_that_is_said(brains, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("nio_pydra"), "propagate", True)
    fixed, moving, ball = brains
    opposite = np.where(ball, moving.max() + 0.1 - moving, 0)
    plain = space_of(fixed, moving)
    assert not plain.inverted and caplog.text == ""
    mended = space_of(fixed, opposite)
    assert mended.correlation == pytest.approx(-plain.correlation, abs=0.1)
    assert mended.inverted and "bright where the fixed one is dark (correlation -0." in caplog.text
    images = mended.problem.fixed.numpy().ravel(), mended.problem.moving.numpy().ravel()
    both = (images[0] > 0) & (images[1] > 0)
    assert np.corrcoef(images[0][both], images[1][both])[0, 1] > 0.5
    assert ((images[1] > 0) == (plain.problem.moving.numpy().ravel() > 0)).mean() > 0.999  # the same object
    assert images[1].min() == 0 and images[1].max() <= 1


def test_the_border_of_an_inverted_object_is_as_dark_as_that_of_the_object_itself(brains):
    fixed, moving, ball = brains
    moving = np.where(
        ball, moving - 0.98 * moving[ball].min(), 0
    )  # the darkest tissue is nearly as dark as the background
    opposite = np.where(ball, moving.max() + 0.01 - moving, 0)
    plain, mended = (space_of(fixed, own, shift=0.4).problem.moving for own in (moving, opposite))
    assert (plain - mended).abs().max() < 0.1  # inverted where it is sampled, the border would be 1 - 0.3
    assert not space_of(fixed, opposite, invert=False).inverted


def test_images_that_have_nothing_to_do_with_each_other_stay_as_they_are(brains):
    fixed, _, ball = brains
    noise = np.where(ball, np.random.default_rng(1).uniform(0.2, 1, ball.shape), 0)
    assert not space_of(fixed, noise).inverted
    assert not space_of(fixed, np.where(ball, 0.7, 0)).inverted
