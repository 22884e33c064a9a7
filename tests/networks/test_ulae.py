"""ULAE-net: it starts as the identity, every weight learns, and it learns to move."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import torch

from nio_pydra.losses import lncc
from nio_pydra.networks import load_network
from nio_pydra.networks.ulae import ULAE, ULAEConfig
from nio_pydra.spatial.unit_grid import unit_to_voxel, voxel_to_unit, warp

SHAPE = (32, 48, 32)


def textured_ball(shift: tuple[float, float, float]) -> torch.Tensor:
    """A ball of smooth texture on a dark background, moved by voxels along each axis."""
    axes = [torch.arange(n) - (n - 1) / 2 - s for n, s in zip(SHAPE, shift, strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    texture = 0.6 + 0.2 * torch.sin(0.9 * x) * torch.sin(0.7 * y) + 0.2 * torch.sin(0.8 * z + 0.5 * x)
    return (texture * torch.sigmoid(11 - (x**2 + (0.7 * y) ** 2 + z**2).sqrt()))[None, None]


def test_an_untrained_network_moves_almost_nothing():
    torch.manual_seed(0)
    moving, fixed = torch.rand(2, 1, 1, *SHAPE)
    with torch.no_grad():
        moved = unit_to_voxel(ULAE().predict(moving, fixed)).abs()
    assert 0 < moved.max() < 0.01


def test_the_loss_reaches_every_weight():
    torch.manual_seed(0)
    network = ULAE(ULAEConfig(channels=2))
    moving, fixed = textured_ball((1, 2, 0)), textured_ball((0, 0, 0))
    for decoder in network.decoders:  # at first almost nothing passes the last convolutions
        torch.nn.init.normal_(decoder.field.weight, std=0.1)
    lncc(fixed, warp(moving, network.predict(moving, fixed)), 7).backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


def test_fields_are_composed_so_that_the_next_decoder_goes_on_from_the_moved_image(monkeypatch):
    network = ULAE(ULAEConfig(channels=2))
    moves = [(2.0, 0.0, 0.0), (0.0, -3.0, 0.0), (0.0, 0.0, 1.5)]  # voxels of the full grid, along D, H, W
    seen = []
    for decoder, move in zip(network.decoders, moves, strict=True):

        def scripted(features, moving, fixed, move=move):
            seen.append(moving)
            scale = torch.tensor([n / m for n, m in zip(moving.shape[2:], SHAPE, strict=True)])
            voxels = (torch.tensor(move) * scale).view(1, 3, 1, 1, 1).expand(1, 3, *moving.shape[2:])
            return voxel_to_unit(voxels)

        monkeypatch.setattr(decoder, "forward", scripted)
    moving = textured_ball((0, 0, 0))
    field = unit_to_voxel(network.predict(moving, moving))
    inside = (..., slice(8, -8), slice(8, -8), slice(8, -8))
    # A unit of the coarse grid is a little more of the fine one, as their outer voxels share no centres.
    torch.testing.assert_close(field[inside][0, :, 0, 0, 0], torch.tensor([2.0, -3.0, 1.5]), atol=0.25, rtol=0)
    shapes = [tuple(n // k for n in SHAPE) for k in (4, 2, 1)]
    assert [tuple(image.shape[2:]) for image in seen] == shapes
    expected = textured_ball((-2.0, 3.0, 0.0))  # the last decoder sees what the first two have moved
    assert (seen[2] - expected)[inside].abs().max() < 0.1 < (seen[2] - moving)[inside].abs().max()


def test_a_few_steps_on_one_pair_find_its_shift():
    torch.manual_seed(0)
    network = ULAE(ULAEConfig(channels=4))
    moving, fixed = textured_ball((1.5, -1.0, 0.5)), textured_ball((0, 0, 0))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = lncc(fixed, warp(moving, network.predict(moving, fixed)), 7)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        moved = unit_to_voxel(network.predict(moving, fixed))
    inside = (fixed > 0.3).expand_as(moved)
    found = moved[inside].view(3, -1).mean(1)
    torch.testing.assert_close(found, torch.tensor([1.5, -1.0, 0.5]), atol=0.4, rtol=0)


def test_the_weights_of_the_package_are_small_say_what_they_are_and_align_scans_that_they_never_saw(real_data):
    path = Path(str(resources.files("nio_pydra") / "weights" / "ulae.safetensors"))
    assert path.stat().st_size < 5_000_000
    network, metadata = load_network(path)
    assert isinstance(network, ULAE) and metadata["licence"] == "Apache-2.0" and "SynthSeg" in metadata["training_data"]
    folder = real_data / "freesurfer_pairs"
    with np.load(folder / "voxelmorph_test_scan.npz") as a, np.load(folder / "l2r2019_subject_1_vol.npz") as b:
        volumes = [next(iter(file.values())).astype(np.float32) for file in (a, b)]
    moving, fixed = (torch.from_numpy(v[32:128, 48:144, 64:160].copy())[None, None] for v in volumes)
    with torch.no_grad():
        warped = warp(moving, network.predict(moving, fixed))
    before, after = (-lncc(fixed, image, 7).item() for image in (moving, warped))
    assert after > before + 0.2
