"""Engine ``ulae``: ULAE-net (Shu et al. 2021) with weights trained as LapIRN's, a learned baseline."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from nio_pydra.engines.nio import NetworkEngine, NetworkSettings
from nio_pydra.engines.references import SHU_2021

__all__ = ["ULAE"]


def _packaged_weights() -> Path:
    return Path(str(resources.files("nio_pydra") / "weights" / "ulae.safetensors"))


ULAE = NetworkEngine(
    "ULAE-net, a network that accumulates fields at three scales; weights of this package",
    (SHU_2021,),
    {"default": NetworkSettings()},
    _packaged_weights,
)
