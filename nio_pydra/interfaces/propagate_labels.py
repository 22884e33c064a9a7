"""Nipype interface: labels resampled through a transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterface, BaseInterfaceInputSpec, File, TraitedSpec

__all__ = ["NIOPropagateLabels"]


class NIOPropagateLabelsInputSpec(BaseInterfaceInputSpec):
    """Labels, and where to bring them."""

    labels = File(exists=True, mandatory=True, desc="label image")
    reference = File(exists=True, mandatory=True, desc="image that gives the grid of the result")
    transform = File(exists=True, mandatory=True, desc="ITK composite .h5, from points of the reference to the labels")


class NIOPropagateLabelsOutputSpec(TraitedSpec):
    """A file in the node's working folder."""

    propagated = File(exists=True, desc="labels on the reference's grid")


class NIOPropagateLabels(BaseInterface):
    """Resample a label image through a transform with one nearest-neighbour interpolation."""

    input_spec = NIOPropagateLabelsInputSpec
    output_spec = NIOPropagateLabelsOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from nio_pydra.engines.registration import propagate_labels

        inputs = (Path(getattr(self.inputs, name)) for name in ("labels", "reference", "transform"))
        propagate_labels(*inputs, Path(runtime.cwd) / "labels.nii.gz")
        return runtime

    def _list_outputs(self) -> dict[str, str]:
        return {"propagated": str(Path.cwd() / "labels.nii.gz")}
