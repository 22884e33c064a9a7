"""Similarity and regularity: pure functions of tensors."""

from nio_pydra.losses.diffusion import diffusion
from nio_pydra.losses.lncc import FixedStatistics, lncc
from nio_pydra.losses.volume import volume_change

__all__ = ["FixedStatistics", "diffusion", "lncc", "volume_change"]
