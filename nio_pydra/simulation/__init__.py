"""Simulated subjects, whose true alignment is known."""

from nio_pydra.simulation.dataset import SimulatedDataset, make_dataset
from nio_pydra.simulation.subject import Appearance, Template, TrueMap, mni152, random_map, scan

__all__ = [
    "Appearance",
    "SimulatedDataset",
    "Template",
    "TrueMap",
    "make_dataset",
    "mni152",
    "random_map",
    "scan",
]
