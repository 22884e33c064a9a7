"""MPR: the published weights give what the authors' own network gives.

The authors' package is no dependency. Where it is importable, the comparisons run:
``pip install --no-deps --target DIR MultiPropReg==0.1.1`` and DIR on PYTHONPATH.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from nio_pydra.errors import InputError
from nio_pydra.networks import convert, load_network
from nio_pydra.networks.mpr import MPR, MPRConfig, _as_unit_field, _sampled
from nio_pydra.spatial.unit_grid import warp

TINY = MPRConfig(fine_channels=2, coarse_channels=2, matching_channels=(3, 2, 2), refining_channels=(2, 2, 2))
INSIDE = (..., slice(3, -3), slice(3, -3), slice(3, -3))  # beyond the border the authors see zeros, we the last voxel


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    found = find_spec("MultiPropReg")
    if found is None or not found.submodule_search_locations:
        pytest.skip("MultiPropReg is not importable: pip install --no-deps --target DIR MultiPropReg==0.1.1")
    return Path(next(iter(found.submodule_search_locations))) / "models" / "pretrained_model_epoch400.ckpt"


def authors_network(checkpoint: Path, shape: tuple[int, ...]) -> torch.nn.Module:
    """Their network for images of a shape, which is a global of their module."""
    theirs = import_module("MultiPropReg.torch.networks")
    theirs.shape = shape
    network = theirs.MPR_net_noHyper(None)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    network.load_state_dict({k: v for k, v in state.items() if not k.endswith(".grid")}, strict=False)
    return network


def test_the_published_weights_move_an_image_as_the_authors_network_does(checkpoint):
    torch.manual_seed(0)
    compare_with_authors(checkpoint, *torch.rand(2, 1, 1, 32, 48, 40))


def test_the_published_weights_move_a_real_scan_as_the_authors_network_does_and_improve_it(checkpoint, real_data):
    folder = real_data / "freesurfer_pairs"
    with np.load(folder / "voxelmorph_test_scan.npz") as a, np.load(folder / "l2r2019_subject_1_vol.npz") as b:
        volumes = [next(iter(file.values())).astype(np.float32) for file in (a, b)]
    # They lie in LIA, and the weights know LAS.
    volumes = [v[32:128, 48:144, 64:160].transpose(0, 2, 1)[:, :, ::-1].copy() for v in volumes]
    moving, fixed = (torch.from_numpy(v)[None, None] for v in volumes)
    warped = compare_with_authors(checkpoint, moving, fixed)
    correlation = [np.corrcoef(image[INSIDE].flatten(), fixed[INSIDE].flatten())[0, 1] for image in (moving, warped)]
    assert correlation[1] > correlation[0] + 0.1


def compare_with_authors(checkpoint: Path, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    network, metadata = load_network(checkpoint)
    assert metadata["orientation"] == "LAS" and metadata["source"] == checkpoint.name
    with torch.no_grad():
        expected, flow, *_ = authors_network(checkpoint, tuple(moving.shape[2:]))(moving, fixed)
        warped = warp(moving, network.predict(moving, fixed))
    assert flow.abs().max() > 0.5
    torch.testing.assert_close(warped[INSIDE], expected[INSIDE], atol=1e-4, rtol=0)
    return warped


def test_a_published_checkpoint_converts_and_another_is_refused(checkpoint, tmp_path):
    metadata = convert(checkpoint, tmp_path / "mpr.safetensors")
    assert metadata["architecture"] == "mpr"
    converted, original = (load_network(path)[0] for path in (tmp_path / "mpr.safetensors", checkpoint))
    assert all(torch.equal(a, b) for a, b in zip(converted.parameters(), original.parameters(), strict=True))
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state["conv1_0.main.weight"] = state["conv1_0.main.weight"][:, :30]
    torch.save(state, tmp_path / "narrow.ckpt")
    with pytest.raises(InputError, match=r"narrow\.ckpt holds weights of another network.*fine\.matching\.0\.weight"):
        load_network(tmp_path / "narrow.ckpt")


def test_the_unit_field_samples_where_the_authors_convention_does():
    torch.manual_seed(0)
    volume, field = torch.rand(1, 1, 12, 16, 20), torch.empty(1, 3, 12, 16, 20).uniform_(-2, 2)
    torch.testing.assert_close(warp(volume, _as_unit_field(field))[INSIDE], _sampled(volume, field)[INSIDE])


def test_the_loss_reaches_every_weight():
    torch.manual_seed(0)
    network = MPR(TINY)
    moving, fixed = torch.rand(2, 1, 1, 16, 24, 20)
    network.predict(moving, fixed).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("wrong", [{"fine_channels": 0}, {"matching_channels": (3, 2)}])
def test_a_shape_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"channel"):
        MPRConfig(**wrong)
