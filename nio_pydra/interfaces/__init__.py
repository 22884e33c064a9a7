"""Nipype interfaces to the functions that the command line and the Pydra tasks call."""

from typing import Any

from nio_pydra.interfaces.inputs import PredictedMemory
from nio_pydra.interfaces.propagate_labels import NIOPropagateLabels
from nio_pydra.interfaces.registration import NIORegistration

__all__ = [
    "NIOPropagateLabels",
    "NIORegistration",
    "NIOSpatialNormalization",
    "NIOSpatialNormalizationRPT",
    "PredictedMemory",
]


def __getattr__(name: str) -> Any:
    """Import the interfaces that need niworkflows when they are asked for."""
    if name == "NIOSpatialNormalization":
        from nio_pydra.interfaces import spatial_normalization as module
    elif name == "NIOSpatialNormalizationRPT":
        from nio_pydra.interfaces import reportlets as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
