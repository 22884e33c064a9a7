"""Nipype interfaces to the functions that the command line and the Pydra tasks call."""

from nio_pydra.interfaces.propagate_labels import NIOPropagateLabels
from nio_pydra.interfaces.registration import NIORegistration

__all__ = ["NIOPropagateLabels", "NIORegistration"]
