"""The deformation model and the augmentation of the chest."""

from dataclasses import replace

import pytest
import torch

from nio_pydra.networks import LapIRN, LapIRNConfig
from nio_pydra.optimize.augmentation import RandomAffines, loss_through, moved_by
from nio_pydra.optimize.bspline import bspline
from nio_pydra.optimize.io import IOSettings, optimize_field
from nio_pydra.optimize.nio import NIOSettings, optimize_network
from nio_pydra.optimize.problem import Objective, Problem
from nio_pydra.spatial.unit_grid import identity_grid, upsample, warp

SHAPE = (24, 32, 24)


@pytest.fixture
def pair() -> Problem:
    generator = torch.Generator().manual_seed(0)
    texture = upsample(torch.rand(1, 1, 6, 8, 6, generator=generator), 4).contiguous()
    push = upsample(torch.randn(1, 3, 3, 4, 3, generator=generator), 8) * 0.05
    weights = torch.zeros_like(texture)
    weights[:, :, 4:-4, 4:-4, 4:-4] = 1
    return Problem(texture, warp(texture, push.contiguous()), weights)


@pytest.fixture
def network() -> LapIRN:
    torch.manual_seed(1)
    return LapIRN(LapIRNConfig(encoder_channels=4, channels=4, head_channels=(4, 4, 4)))


def roughness(field: torch.Tensor) -> float:
    """Second differences, which a B-spline keeps small."""
    return sum(float(field.diff(n=2, dim=axis).square().mean()) for axis in (2, 3, 4))


def missing(pair: Problem, field: torch.Tensor) -> float:
    """What the similarity of a field lacks of the largest one."""
    return 1 + pair.similarity(field).item()


@pytest.mark.parametrize("level", [1, 2, 4])
def test_a_bspline_keeps_a_shift_and_takes_away_noise_at_every_level(level):
    size = tuple(n // level for n in SHAPE)
    shift = torch.full((1, 3, *size), 0.1)
    assert torch.allclose(bspline(shift, SHAPE, 3), torch.full((1, 3, *SHAPE), 0.1), atol=1e-6)
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    plain, *smooth = (roughness(bspline(noise, SHAPE, count)) for count in (0, 1, 3))
    assert smooth[1] < 0.2 * smooth[0] < 0.2 * plain


def test_without_smoothings_the_field_is_only_upsampled():
    field = torch.randn(1, 3, *(n // 2 for n in SHAPE))
    assert torch.equal(bspline(field, SHAPE, 0), upsample(field))


def test_a_bspline_lets_the_gradient_through():
    field = torch.zeros(1, 3, *SHAPE, requires_grad=True)
    bspline(field, SHAPE, 3).square().sum().add(bspline(field, SHAPE, 3).sum()).backward()
    assert (field.grad > 0).all()


def test_random_affines_have_the_papers_size_and_follow_the_seed():
    torch.manual_seed(7)
    first, second = RandomAffines(0.035, SHAPE, torch.device("cpu")), RandomAffines(0.035, SHAPE, torch.device("cpu"))
    shifts = torch.stack([first.next() for _ in range(200)])
    assert torch.equal(shifts[0], second.next()) and not torch.equal(shifts[0], shifts[1])
    centre = shifts[:, 0, :, 12, 16, 12]
    assert float(centre.std()) == pytest.approx(0.035, rel=0.15)
    # Affine: no second differences.
    assert roughness(shifts[0]) < 1e-10


def test_an_affine_moves_images_and_weights_alike(pair):
    shift = RandomAffines(0.1, SHAPE, torch.device("cpu")).next()
    seen = moved_by(shift, pair)
    assert torch.equal(seen.fixed, warp(pair.fixed, shift)) and torch.equal(seen.moving, warp(pair.moving, shift))
    assert torch.equal(seen.fixed_weights, warp(pair.fixed_weights, shift)) and seen.moving_weights is None


def test_a_fields_loss_through_an_affine_is_lowest_for_the_same_field_as_without_one(pair):
    """The field of a shift: seen through any affine, it must still be the shift that matches."""
    shift = torch.zeros(1, 3, *SHAPE)
    shift[:, 0] = 4 / 11.5  # voxels of an axis of 24
    moved = Problem(pair.fixed, warp(pair.fixed, -shift), pair.fixed_weights)
    affine = RandomAffines(0.1, SHAPE, torch.device("cpu")).next()
    true, half, none = (loss_through(affine, moved, k * shift, Objective(weight=0)).item() for k in (1, 0.5, 0))
    assert true < -0.95 and true < half - 0.1 < none - 0.1
    unmoved = loss_through(torch.zeros_like(shift), pair, 0.3 * shift, Objective())
    assert unmoved.item() == pytest.approx(pair.loss(0.3 * shift, Objective()).item(), abs=1e-5)


@pytest.mark.parametrize("smoothings", [0, 3])
def test_a_network_that_sees_affines_of_the_pair_aligns_the_pair_itself(pair, network, smoothings):
    settings = NIOSettings(iterations=(12, 8, 0), learning_rate=3e-3, augmentation=0.035)
    torch.manual_seed(0)
    found = optimize_network(network, pair, settings, smoothings=smoothings)
    torch.manual_seed(0)
    again = optimize_network(network, pair, settings, smoothings=smoothings)
    plain = optimize_network(network, pair, replace(settings, augmentation=0.0), smoothings=smoothings)
    assert torch.equal(found, again) and not torch.equal(found, plain)
    assert missing(pair, found) < 0.8 * missing(pair, torch.zeros(1, 3, *SHAPE))


def test_the_bspline_makes_the_networks_field_smoother(pair, network):
    settings = NIOSettings(iterations=(6, 4, 2), learning_rate=3e-3)
    rough, smooth = (roughness(optimize_network(network, pair, settings, smoothings=n)) for n in (0, 3))
    assert smooth < 0.5 * rough


def test_a_field_refined_through_affines_aligns_the_pair_itself(pair):
    zero = torch.zeros(1, 3, *SHAPE)
    found = optimize_field(zero, pair, IOSettings(iterations=30, smoothings=3, augmentation=0.035))
    assert missing(pair, found) < 0.3 * missing(pair, zero)


@pytest.mark.parametrize("settings", [NIOSettings, IOSettings])
@pytest.mark.parametrize("strength", [-0.1, 0.5])
def test_an_augmentation_that_would_lose_the_images_is_refused(settings, strength):
    with pytest.raises(ValueError, match="augmentation is"):
        settings(augmentation=strength)


def test_the_identity_grid_is_not_changed_by_drawing():
    before = identity_grid(SHAPE, device=torch.device("cpu"))
    affines = RandomAffines(0.1, SHAPE, torch.device("cpu"))
    affines.next()
    assert torch.equal(affines._grid, before)
