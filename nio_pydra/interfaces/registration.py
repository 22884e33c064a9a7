"""Nipype interface: registration of one pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import BaseInterface, BaseInterfaceInputSpec, File, TraitedSpec, isdefined, traits

from nio_pydra.engines.names import ENGINES, LARGEST_SEED

__all__ = ["NIORegistration"]

FILES = ("fixed_mask", "fixed_labels", "moving_mask", "moving_labels", "lesion_mask", "weights")
"""Inputs that are files and may be left out."""


class NIORegistrationInputSpec(BaseInterfaceInputSpec):
    """What to register, and how."""

    fixed = File(exists=True, mandatory=True, desc="image to align to (the atlas)")
    moving = File(exists=True, mandatory=True, desc="image to be aligned")
    fixed_labels = File(exists=True, desc="label image of the fixed image, for the Dice overlap")
    moving_labels = File(exists=True, desc="label image of the moving image, to be resampled onto the fixed one")
    fixed_mask = File(exists=True, desc="mask of the object (default: made)")
    moving_mask = File(exists=True, desc="mask of the object (default: made)")
    lesion_mask = File(exists=True, desc="region of the moving image to leave out of the similarity")
    skull_stripped = traits.Bool(False, usedefault=True, desc="both images are zero outside the object")
    engine = traits.Enum(*ENGINES, usedefault=True, desc="registration engine")
    preset = traits.Str(desc="preset of the engine (default: its first)")
    settings = traits.Dict(desc="settings that differ from the preset's")
    weights = File(exists=True, desc="network weights (default: those of the package)")
    device = traits.Enum("auto", "cpu", "cuda", usedefault=True, desc="where the engine runs")
    precision = traits.Enum("auto", "float32", usedefault=True, desc="auto: bfloat16 where that is faster")
    num_threads = traits.Int(
        0, usedefault=True, nohash=True, desc="processor threads, 0 for OMP_NUM_THREADS, else all cores"
    )
    random_seed = traits.Range(0, LARGEST_SEED, 0, usedefault=True, desc="random seed")


class NIORegistrationOutputSpec(TraitedSpec):
    """Files in the node's working folder."""

    forward_xfm = File(exists=True, desc="ITK composite, fixed to moving points")
    inverse_xfm = File(exists=True, desc="ITK composite, moving to fixed points")
    warped = File(exists=True, desc="moving image on the fixed grid")
    labels = File(desc="moving labels on the fixed grid, if given")
    fixed_labels = File(desc="labels of the fixed image on the moving grid, if it has labels")
    record = File(exists=True, desc="JSON: settings, time, memory, measures of quality")


class NIORegistration(BaseInterface):
    """Register a moving image to a fixed one by any engine of nio_pydra.

    Examples
    --------
    >>> from nio_pydra.interfaces import NIORegistration
    >>> register = NIORegistration(engine="lapirn", skull_stripped=True)
    >>> register.inputs.engine
    'lapirn'
    """

    input_spec = NIORegistrationInputSpec
    output_spec = NIORegistrationOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from nio_pydra.engines.chain import register_pair
        from nio_pydra.engines.contract import Runtime, ScanFiles
        from nio_pydra.engines.methods import choose_method

        given = {name: value for name, value in self.inputs.get().items() if isdefined(value)}
        paths = {name: Path(given[name]) if name in given else None for name in FILES}
        stripped = given["skull_stripped"]
        register_pair(
            ScanFiles(Path(given["fixed"]), paths["fixed_mask"], paths["fixed_labels"], skull_stripped=stripped),
            ScanFiles(
                Path(given["moving"]), paths["moving_mask"], paths["moving_labels"], paths["lesion_mask"], stripped
            ),
            Path(runtime.cwd),
            choose_method(
                given["engine"], given.get("preset"), weights=paths["weights"], changes=given.get("settings")
            ),
            runtime=Runtime(
                device=given["device"],
                precision=given["precision"],
                threads=given["num_threads"],
                seed=given["random_seed"],
            ),
        )
        return runtime

    def _list_outputs(self) -> dict[str, str]:
        names = ["forward_xfm.h5", "inverse_xfm.h5", "warped.nii.gz", "record.json"]
        if isdefined(self.inputs.moving_labels):
            names.append("labels.nii.gz")
        if isdefined(self.inputs.fixed_labels):
            names.append("fixed_labels.nii.gz")
        # nipype lists outputs from inside the node's folder
        return {name.partition(".")[0]: str(Path.cwd() / name) for name in names}
