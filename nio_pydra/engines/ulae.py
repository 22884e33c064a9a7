"""Engine ``ulae``: ULAE-net (Shu et al. 2021) with weights trained as LapIRN's, a learned baseline."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from nio_pydra.engines.nio import NetworkEngine, NetworkSettings

__all__ = ["ULAE"]


def _packaged_weights() -> Path:
    return Path(str(resources.files("nio_pydra") / "weights" / "ulae.safetensors"))


ULAE = NetworkEngine(
    "ULAE-net, a network that accumulates fields at three scales; weights of this package",
    "Shu et al. 2021, MICCAI: Medical image registration based on uncoupled learning and accumulative enhancement",
    {"default": NetworkSettings()},
    _packaged_weights,
)
