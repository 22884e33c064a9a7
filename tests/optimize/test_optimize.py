"""Instance optimisation of a network and of a field."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from nio_pydra.engines.nio import REFINEMENT
from nio_pydra.errors import ComputationError, InputError
from nio_pydra.metrics.regularity import jacobian_determinant, regularity
from nio_pydra.networks import LapIRN, LapIRNConfig
from nio_pydra.optimize.estimate import Estimate
from nio_pydra.optimize.io import IOSettings, optimize_field
from nio_pydra.optimize.nio import NIOSettings, optimize_network
from nio_pydra.optimize.problem import Objective, Problem
from nio_pydra.spatial.transforms import DisplacementField
from nio_pydra.spatial.unit_grid import unit_to_voxel, upsample, voxel_to_unit, warp

SHAPE = (32, 40, 32)
ZERO = torch.zeros(1, 3, *SHAPE)


@pytest.fixture
def pair():
    """A textured ball, and the same ball pulled out of shape."""
    generator = torch.Generator().manual_seed(0)
    texture = upsample(torch.rand(1, 1, 8, 10, 8, generator=generator), 4)
    axes = [torch.linspace(-1, 1, n) for n in SHAPE]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    fixed = texture * torch.sigmoid((0.8 - radius) * 20)
    push = upsample(torch.randn(1, 3, 4, 5, 4, generator=generator), 8) * 0.06
    return Problem(fixed.contiguous(), warp(fixed, push))


@pytest.fixture
def network():
    torch.manual_seed(1)
    return LapIRN(LapIRNConfig(encoder_channels=4, channels=4, head_channels=(4, 4, 4)))


FAST = NIOSettings(iterations=(10, 8, 4), learning_rate=3e-3)


def test_nio_m_improves_the_similarity_more_than_the_prediction_alone(pair, network):
    predicted = optimize_network(network, pair, NIOSettings(iterations=(0, 0, 0)))
    optimised = optimize_network(network, pair, FAST)
    values = [pair.similarity(f).item() for f in (ZERO, predicted, optimised)]
    assert values[2] < values[0] - 0.02 and values[2] < values[1] - 0.02


def test_each_level_starts_from_what_the_levels_below_learned(pair, network):
    losses = [
        pair.loss(optimize_network(network, pair, replace(FAST, iterations=n)), FAST.objective).item()
        for n in ((10, 0, 0), (10, 10, 0), (10, 10, 15))
    ]
    assert losses[0] > losses[1] > losses[2]


def test_a_level_without_steps_still_predicts(pair, network):
    predicted, nearly = (
        optimize_network(network, pair, NIOSettings(iterations=n, learning_rate=1e-12)) for n in ((0, 0, 0), (1, 0, 0))
    )
    assert torch.allclose(predicted, nearly, atol=1e-5) and predicted.abs().max() > 1e-3


def test_the_given_network_is_left_unchanged(pair, network):
    before = copy.deepcopy(network.state_dict())
    optimize_network(network, pair, FAST)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_the_same_run_gives_the_same_bits(pair, network):
    fields = [optimize_network(network, pair, FAST) for _ in range(2)]
    assert torch.equal(*fields)


def test_bfloat16_convolutions_end_close_to_float32(pair, network):
    exact = optimize_network(network, pair, FAST)
    rough = optimize_network(network, pair, FAST, precision=torch.bfloat16)
    assert rough.dtype == torch.float32
    assert pair.similarity(rough).item() == pytest.approx(pair.similarity(exact).item(), rel=0.03)


def test_more_regularisation_gives_a_smoother_field(pair, network):
    from nio_pydra.losses import diffusion

    rough, smooth = (
        optimize_network(network, pair, replace(FAST, objective=Objective(weight=w))) for w in (0.05, 0.95)
    )
    assert diffusion(smooth) < 0.7 * diffusion(rough)


def test_diff_network_gives_a_field_without_folds(pair):
    torch.manual_seed(1)
    network = LapIRN(LapIRNConfig(variant="diff", encoder_channels=4, channels=4, head_channels=(4, 4, 4)))
    field = unit_to_voxel(optimize_network(network, pair, FAST))[0].numpy()
    import numpy as np

    from nio_pydra.metrics import jacobian_determinant
    from nio_pydra.spatial.transforms import DisplacementField

    assert np.abs(field).max() > 0.3
    assert (jacobian_determinant(DisplacementField(field, np.eye(4)))[2:-2, 2:-2, 2:-2] > 0).all()


@pytest.mark.parametrize("spacing", [1, 2, 3])  # 3 does not divide the size
def test_io_refines_a_field(pair, spacing):
    refined = optimize_field(ZERO, pair, IOSettings(iterations=15, learning_rate=0.3, spacing=spacing))
    assert refined.shape == ZERO.shape
    assert pair.similarity(refined) < pair.similarity(ZERO) - 0.02


@pytest.mark.parametrize("coarse", [(60, 0), (0, 60)])
@pytest.mark.parametrize("spacing", [1, 3])
def test_steps_on_coarse_images_find_a_known_shift_at_full_resolution(coarse, spacing):
    size, shift = (34, 41, 38), (2.0, -1.5, 1.0)  # not multiples of 4
    generator = torch.Generator().manual_seed(3)
    fixed = upsample(torch.rand(1, 1, 6, 7, 7, generator=generator), 6)[..., :34, :41, :38].contiguous()
    truth = voxel_to_unit(torch.tensor(shift).view(1, 3, 1, 1, 1).expand(1, 3, *size))
    pair = Problem(fixed, warp(fixed, -truth))
    settings = IOSettings(
        iterations=0, coarse_iterations=coarse, learning_rate=0.2, spacing=spacing, objective=Objective(weight=0.02)
    )
    found = unit_to_voxel(optimize_field(torch.zeros(1, 3, *size), pair, settings))[0]
    assert found.shape == (3, *size)
    assert found[:, 8:-8, 8:-8, 8:-8].median(dim=1)[0].flatten(1).median(dim=1)[0].tolist() == pytest.approx(
        shift, abs=0.25
    )


def test_coarse_steps_before_fine_ones_improve_on_the_same_fine_ones(pair):
    fine = IOSettings(iterations=3, learning_rate=0.3)
    values = [
        pair.similarity(optimize_field(ZERO, pair, replace(fine, coarse_iterations=n, form=form))).item()
        for form in ("displacement", "diffeomorphic") for n in ((0, 0), (20, 20))
    ]  # fmt: skip
    assert values[1] < values[0] - 0.005 and values[3] < values[2] - 0.005


def test_a_coarser_pair_holds_means_and_leaves_out_every_block_with_a_lesion(pair):
    weights = torch.ones_like(pair.moving)
    weights[..., 9, 13, 21] = 0
    coarse = Problem(pair.fixed, pair.moving, moving_weights=weights).coarser(4)
    assert coarse.moving.shape[2:] == (8, 10, 8) and coarse.fixed_weights is None
    assert coarse.moving[0, 0, 2, 3, 5] == pytest.approx(pair.moving[0, 0, 8:12, 12:16, 20:24].mean().item(), rel=1e-5)
    assert torch.argwhere(coarse.moving_weights[0, 0] == 0).tolist() == [[2, 3, 5]]


def test_windows_of_coarser_images_are_smaller_but_no_less_than_five_voxels():
    assert [Objective(window=w).coarser(f).window for w, f in ((11, 1), (11, 2), (11, 4), (7, 2), (3, 2), (21, 2))] == [
        11, 5, 5, 5, 3, 11,
    ]  # fmt: skip


def test_the_field_of_fewer_levels_is_upsampled(pair, network):
    found = optimize_network(network, pair, NIOSettings(iterations=(0, 0, 0), levels=2))
    with torch.no_grad():
        second = network(pair.moving, pair.fixed, levels=2)[-1].field
    assert torch.allclose(found, upsample(second), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"levels": 4}, "levels is 4"), ({"levels": 2, "iterations": (5, 5, 1)}, "no steps above level 2")],
)
def test_levels_that_do_not_exist_or_do_not_predict_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        NIOSettings(**changes)


def test_a_loss_at_the_resolution_of_the_level_teaches_the_network_as_well(pair, network):
    at_level = replace(FAST, iterations=(10, 8, 0), compared="level")
    predicted = optimize_network(network, pair, NIOSettings(iterations=(0, 0, 0)))
    values = [
        pair.similarity(optimize_network(network, pair, settings)).item()
        for settings in (at_level, replace(at_level, compared="full"))
    ]
    assert max(values) < pair.similarity(predicted).item() - 0.02 and values[0] != values[1]
    last = replace(FAST, iterations=(0, 0, 3))
    assert torch.equal(
        *(optimize_network(network, pair, replace(last, compared=kind)) for kind in ("full", "level"))
    ), "the last level has the full resolution"


def test_the_diffeomorphic_form_and_a_penalty_of_volume_change_prevent_folds(pair):
    rough = IOSettings(iterations=40, learning_rate=0.5, smoothings=0, objective=Objective(weight=0))
    penalised = replace(rough, objective=Objective(weight=0, volume_weight=0.05))
    folds, gained = [], []
    for settings in (rough, penalised, replace(rough, form="diffeomorphic"), replace(penalised, form="diffeomorphic")):
        field = optimize_field(ZERO, pair, settings)
        world = DisplacementField.from_voxels(unit_to_voxel(field)[0].numpy(), np.eye(4))
        folds.append(regularity(world, np.ones(SHAPE, bool)).fold_percent)
        gained.append(pair.similarity(ZERO).item() - pair.similarity(field).item())
    assert folds[0] > 2 and max(folds[1:3]) < folds[0] / 8 and folds[3] == 0
    assert min(gained) > 0.9 * max(gained)


def test_the_penalty_of_volume_change_leaves_room_for_large_ventricles():
    shape = (48, 48, 48)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)[None, None]
    volume = 4.0

    def brain(ventricle):
        return torch.sigmoid((0.9 - radius) * 25) * torch.sigmoid((radius - ventricle) * 25)

    pair = Problem(brain(0.3), brain(0.3 * volume ** (1 / 3)))
    settings = replace(REFINEMENT, iterations=40)
    penalised = settings.objective.volume_weight
    assert penalised > 0
    grown = []
    for weight in (0, penalised):
        chosen = replace(settings, objective=replace(settings.objective, volume_weight=weight))
        field = optimize_field(torch.zeros(1, 3, *shape), pair, chosen)
        world = DisplacementField.from_voxels(unit_to_voxel(field)[0].numpy(), np.eye(4))
        grown.append(float(jacobian_determinant(world)[(radius[0, 0] < 0.25).numpy()].mean()))
    assert grown[1] > 0.85 * grown[0] > 2


def test_a_lesion_does_not_pull(pair):
    moving = pair.moving.clone()
    moving[..., 10:20, 14:24, 10:20] = 1.5
    weights = torch.ones_like(moving)
    weights[..., 9:21, 13:25, 9:21] = 0
    spoiled = Problem(pair.fixed, moving)
    masked = Problem(pair.fixed, moving, moving_weights=weights)
    # What the lesion's grey values are is all the same once it is masked.
    other = Problem(pair.fixed, torch.where(weights > 0, moving, 0.2 * moving), moving_weights=weights)
    assert masked.similarity(ZERO).item() == pytest.approx(other.similarity(ZERO).item(), abs=1e-6)
    assert masked.similarity(ZERO).item() != pytest.approx(spoiled.similarity(ZERO).item(), abs=1e-3)
    settings = IOSettings(iterations=40, learning_rate=0.3)
    clean, spared, pulled = (optimize_field(ZERO, p, settings) for p in (pair, masked, spoiled))
    edge = (weights < 1).float().expand(1, 3, *SHAPE)  # inside and just beside the lesion

    def distance(field):
        return (unit_to_voxel(field - clean) * edge).norm(dim=1).sum().item()

    assert distance(spared) < 0.8 * distance(pulled)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (NIOSettings, "iterations", (1, 2)),
        (NIOSettings, "iterations", (1, -2, 3)),
        (NIOSettings, "learning_rate", 0.0),
        (IOSettings, "iterations", -1),
        (IOSettings, "coarse_iterations", (5,)),
        (IOSettings, "coarse_iterations", (5, -1)),
        (IOSettings, "form", "speed"),
        (NIOSettings, "compared", "half"),
        (IOSettings, "spacing", 0),
        (IOSettings, "smoothings", -1),
        (IOSettings, "learning_rate", float("nan")),
        (Objective, "volume_weight", -1.0),
    ],
)
def test_impossible_settings_are_refused_before_any_work(kind, name, value):
    with pytest.raises(ValueError, match=rf"^{name} is {re.escape(repr(value))}: expected"):
        kind(**{name: value})


def test_regularisation_weight_is_a_share():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Objective(weight=1.4)


@pytest.mark.parametrize("steps", [(0, 0, 0), (0, 0, 2)])
def test_an_optimisation_that_diverges_says_so_and_returns_nothing(pair, network, steps):
    with torch.no_grad():
        network.levels[2].head[2].weight[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ComputationError, match="diverged"):
        optimize_network(network, pair, NIOSettings(iterations=steps))
    with pytest.raises(ComputationError, match="diverged: its loss is nan at step 1"):
        optimize_field(torch.full_like(ZERO, float("nan")), pair, IOSettings(iterations=3))
    with pytest.raises(ComputationError, match="diverged"):
        optimize_field(torch.full_like(ZERO, float("nan")), pair, IOSettings(iterations=3, form="diffeomorphic"))


def test_only_lapirn_can_be_optimised_and_others_are_named(pair):
    with pytest.raises(InputError, match="but found no network: use weights of LapIRN"):
        NIOSettings().refine(Estimate(pair))


def test_an_estimate_begins_with_zero_or_with_what_the_network_predicts(pair, network):
    assert not Estimate(pair).field.any()
    predicted = Estimate(pair, network).field
    torch.testing.assert_close(predicted, optimize_network(network, pair, NIOSettings(iterations=(0, 0, 0))))
    assert predicted.dtype == torch.float32 and not predicted.requires_grad


def test_refiners_work_on_what_was_found_before(pair, network):
    coarse = NIOSettings(iterations=(5, 0, 0), learning_rate=3e-3).refine(Estimate(pair, network))
    fine = IOSettings(iterations=10, learning_rate=0.3).refine(coarse)
    assert pair.similarity(fine.field) < pair.similarity(coarse.field) < pair.similarity(ZERO)
