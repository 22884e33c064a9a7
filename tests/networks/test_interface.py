"""Any architecture behind one interface: what each promises, and the files that name it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nio_pydra.errors import InputError
from nio_pydra.networks import LapIRN, LapIRNConfig, Network, load_network, read_metadata, save_network
from nio_pydra.networks.checkpoints import default_weights
from nio_pydra.networks.interface import ARCHITECTURES, architecture_class

TINY: dict[str, dict[str, object]] = {
    "lapirn": {"encoder_channels": 2, "channels": 2, "head_channels": (2, 2, 2)},
    "mpr": {"fine_channels": 2, "coarse_channels": 2, "matching_channels": (3, 2, 2), "refining_channels": (2, 2, 2)},
    "ulae": {"channels": 2},
}
METADATA = {"orientation": "LIA", "voxel_size_mm": 1.0, "intensity_scaling": "minmax"}


def tiny(name: str) -> Network:
    torch.manual_seed(0)
    found = architecture_class(name)
    return found(found.config_class(**TINY[name]))


def rewrite(path, change) -> None:
    """Store the same weights with other metadata."""
    metadata = read_metadata(path)
    change(metadata)
    save_file(load_file(path), path, {"nio_pydra": json.dumps(metadata)})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_predicts_a_full_field_and_survives_its_file(name, tmp_path):
    network = tiny(name)
    assert network.architecture == name
    moving, fixed = torch.rand(2, 1, 1, 32, 48, 32)
    with torch.no_grad():
        field = network.predict(moving, fixed)
    assert field.shape == (1, 3, 32, 48, 32) and field.dtype == torch.float32 and field.isfinite().all()
    save_network(network, tmp_path / "w.safetensors", METADATA)
    loaded, metadata = load_network(tmp_path / "w.safetensors")
    assert metadata["architecture"] == name and type(loaded) is type(network) and loaded.config == network.config
    with torch.no_grad():
        assert torch.equal(loaded.predict(moving, fixed), field)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_size_that_an_architecture_cannot_halve_is_refused(name):
    network = tiny(name)
    image = torch.rand(1, 1, 32, 32 + network.size_multiple // 2, 32)
    with pytest.raises(ValueError, match=f"multiple of {network.size_multiple}"):
        network.predict(image, image)


def test_lapirn_predicts_the_field_of_its_last_level():
    network = tiny("lapirn")
    moving, fixed = torch.rand(2, 1, 1, 16, 24, 16)
    assert torch.equal(network.predict(moving, fixed), network(moving, fixed)[-1].field)


def test_a_file_that_names_no_architecture_holds_lapirn(tmp_path):
    path = tmp_path / "w.safetensors"
    save_network(LapIRN(LapIRNConfig(**TINY["lapirn"])), path, METADATA)
    rewrite(path, lambda metadata: metadata.pop("architecture"))
    assert isinstance(load_network(path)[0], LapIRN)
    assert "architecture" not in read_metadata(default_weights()) and isinstance(load_network()[0], LapIRN)


def test_an_unknown_architecture_is_named_with_its_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_network(tiny("lapirn"), path, METADATA)
    rewrite(path, lambda metadata: metadata.update(architecture="transmorph"))
    with pytest.raises(InputError, match=r"w\.safetensors holds a network of the architecture 'transmorph'.*lapirn"):
        load_network(path)
    rewrite(path, lambda metadata: metadata.update(architecture="lapirn", network={"layers": 3}))
    with pytest.raises(InputError, match=r"w\.safetensors describes a network unknown .* 'layers'"):
        load_network(path)
