"""LNCC, diffusion and volume change, against MONAI, against numbers worked out by hand, and their gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from nio_pydra.losses import FixedStatistics, diffusion, lncc, volume_change
from nio_pydra.spatial.unit_grid import voxel_to_unit

SHAPE = (11, 13, 12)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 1, 1, *SHAPE, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("window", [3, 7])
def test_lncc_equals_monai(images, window):
    monai = pytest.importorskip("monai.losses")
    oracle = monai.LocalNormalizedCrossCorrelationLoss(kernel_size=window, smooth_nr=0.0, smooth_dr=1e-5)
    fixed, warped = images
    assert lncc(fixed, warped, window).item() == pytest.approx(oracle(warped, fixed).item(), rel=1e-5)


def test_lncc_of_equal_images_up_to_brightness_and_contrast_is_minus_one(images):
    fixed, _ = images
    # Zero padding makes an added constant visible at the border: there the weights are zero.
    inside = torch.zeros_like(fixed)
    inside[..., 3:-3, 3:-3, 3:-3] = 1
    assert lncc(fixed, 3 * fixed, 5).item() == pytest.approx(-1, abs=1e-4)
    assert lncc(fixed, 3 * fixed + 2, 3, inside).item() == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_lncc_gradient_is_the_numerical_one(images, masked):
    fixed, warped = (image[..., :6, :7, :5].clone() for image in images)
    weights = (fixed > 0.4).double() if masked else None
    assert gradcheck(lambda x: lncc(fixed, x, 3, weights), warped.requires_grad_())


@pytest.mark.parametrize("masked", [False, True])
def test_compiled_float32_lncc_equals_the_plain_float64_one(images, masked):
    values, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        fixed, warped = (image.to(dtype).clone() for image in images)
        weights = fixed.round() * fixed if masked else None
        loss = lncc(fixed, warped.requires_grad_(), 7, weights)
        (3 * loss).backward()
        values.append(loss.item())
        gradients.append(warped.grad.double())
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[1].abs().max()


def test_voxels_of_weight_zero_do_not_matter(images):
    fixed, warped = images
    weights = torch.ones_like(fixed)
    weights[..., :4, :, :] = 0
    spoiled = torch.where(weights > 0, warped, warped + 5)
    before, after = lncc(fixed, warped, 5, weights), lncc(fixed, spoiled, 5, weights)
    assert before.item() == pytest.approx(after.item(), abs=1e-12)
    assert lncc(fixed, spoiled, 5).item() != pytest.approx(lncc(fixed, warped, 5).item(), abs=1e-3)


def test_stored_statistics_change_nothing(images):
    fixed, warped = images
    assert lncc(FixedStatistics.of(fixed, 5), warped).item() == lncc(fixed, warped, 5).item()


def test_images_of_different_sizes_are_refused(images):
    for dtype in (torch.float32, torch.float64):
        fixed, warped = images.to(dtype)
        with pytest.raises(ValueError, match="expected the fixed image's"):
            lncc(fixed, warped[..., :-1], 5)


def test_empty_weights_and_even_windows_are_refused(images):
    with pytest.raises(ValueError, match="zero everywhere"):
        FixedStatistics.of(images[0], 5, torch.zeros_like(images[0]))
    with pytest.raises(ValueError, match="odd"):
        FixedStatistics.of(images[0], 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diffusion_of_a_linear_field_is_the_mean_square_of_its_slopes(dtype):
    monai = pytest.importorskip("monai.losses")
    slopes = torch.tensor([[0.1, 0.2, -0.1], [0.0, 0.3, 0.1], [-0.2, 0.05, 0.4]], dtype=dtype)
    positions = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=dtype) for n in SHAPE), indexing="ij"))
    voxels = torch.einsum("ca,aijk->cijk", slopes, positions)[None]
    found = diffusion(voxel_to_unit(voxels)).item()
    assert found == pytest.approx(slopes.square().mean().item(), rel=1e-4)
    # MONAI's takes central differences, equal where slopes are constant, and adds up the axes instead of averaging.
    assert found == pytest.approx(monai.DiffusionLoss()(voxels).item() / 3, rel=1e-4)


def test_diffusion_gradient_is_the_numerical_one_and_the_compiled_one_agrees():
    field = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 10
    assert gradcheck(diffusion, field.clone().requires_grad_())
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = field.to(dtype).requires_grad_()
        diffusion(leaf).backward()
        gradients.append(leaf.grad.double())
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_volume_change_of_a_scaling_is_that_of_its_determinant():
    shares = {1.2: 0.04 / 1.2, 4.0: 2.25, 0.25: 2.25, -0.5: 2.25 + 50 * 0.75}  # the last one folds
    for scale, expected in shares.items():
        positions = torch.stack(torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij"))[None].double()
        stretched = positions * torch.tensor([scale, 1, 1]).view(1, 3, 1, 1, 1)
        assert volume_change(voxel_to_unit(stretched - positions)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(18, 5, 9), (33, 3, 4), (2, 2, 2)], ids=str)
def test_compiled_volume_change_and_its_gradient_equal_the_plain_ones(shape):
    field = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(5)) * 0.15  # folds here and there
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = field.to(dtype, copy=True).requires_grad_()
        value = volume_change(leaf)
        (3 * value).backward()
        results.append((value.item(), leaf.grad.double()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert (results[0][1] - results[1][1]).abs().max() < 1e-5 * results[1][1].abs().max()


def test_volume_change_gradient_is_the_numerical_one():
    field = torch.randn(1, 3, 4, 3, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 0.1
    assert gradcheck(volume_change, field.requires_grad_())
