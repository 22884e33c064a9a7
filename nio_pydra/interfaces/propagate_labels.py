"""Nipype interface: labels carried through a transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterface, BaseInterfaceInputSpec, File, TraitedSpec

__all__ = ["NIOPropagateLabels"]


class NIOPropagateLabelsInputSpec(BaseInterfaceInputSpec):
    """What to carry where."""

    labels = File(exists=True, mandatory=True, desc="label image")
    reference = File(exists=True, mandatory=True, desc="image whose grid the result has")
    transform = File(
        exists=True, mandatory=True, desc="ITK composite .h5, points of the reference to points of the labels"
    )


class NIOPropagateLabelsOutputSpec(TraitedSpec):
    """A file in the node's working folder."""

    propagated = File(exists=True, desc="labels on the reference's grid, nearest neighbour")


class NIOPropagateLabels(BaseInterface):
    """Resample a label image through a transform with one nearest-neighbour interpolation."""

    input_spec = NIOPropagateLabelsInputSpec
    output_spec = NIOPropagateLabelsOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from nio_pydra.engines.registration import propagate_labels

        given = self.inputs
        propagate_labels(
            Path(given.labels), Path(given.reference), Path(given.transform), Path(runtime.cwd) / "labels.nii.gz"
        )
        return runtime

    def _list_outputs(self) -> dict[str, str]:
        return {"propagated": str(Path.cwd() / "labels.nii.gz")}
