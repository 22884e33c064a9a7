"""The registration networks and their checkpoints."""

from nio_pydra.networks.checkpoints import convert, load_network, read_metadata, save_network
from nio_pydra.networks.interface import Network
from nio_pydra.networks.lapirn import LapIRN, LapIRNConfig, LevelOutput

__all__ = [
    "LapIRN",
    "LapIRNConfig",
    "LevelOutput",
    "Network",
    "convert",
    "load_network",
    "read_metadata",
    "save_network",
]
