"""Nipype interface: registration of one pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import BaseInterface, File, TraitedSpec, isdefined, traits

from nio_pydra.interfaces.inputs import EngineInputSpec, optional_path

if TYPE_CHECKING:
    from nio_pydra.engines.contract import ScanFiles
    from nio_pydra.engines.methods import Method

__all__ = ["NIORegistration"]


class NIORegistrationInputSpec(EngineInputSpec):
    """What to register, and how."""

    fixed = File(exists=True, mandatory=True, desc="image to align to (the atlas)")
    moving = File(exists=True, mandatory=True, desc="image to be aligned")
    fixed_labels = File(exists=True, desc="label image of the fixed image, for the Dice overlap")
    moving_labels = File(exists=True, desc="label image of the moving image, to be resampled onto the fixed one")
    fixed_mask = File(exists=True, desc="mask of the object (default: made)")
    moving_mask = File(exists=True, desc="mask of the object (default: made)")
    lesion_mask = File(exists=True, desc="region of the moving image to leave out of the similarity")
    skull_stripped = traits.Bool(False, usedefault=True, desc="both images are zero outside the object")
    settings = traits.Dict(desc="settings that differ from the preset's")

    def fixed_files(self) -> ScanFiles:
        """Return the fixed image with its mask and labels."""
        return self._files("fixed")

    def moving_files(self) -> ScanFiles:
        """Return the moving image with its masks and labels."""
        return self._files("moving", optional_path(self.lesion_mask))

    def method(self) -> Method:
        """Return the engine with its settings."""
        from nio_pydra.engines.methods import choose_method

        given = {name: value if isdefined(value) else None for name, value in self.get().items()}
        return choose_method(
            given["engine"], given["preset"], weights=optional_path(self.weights), changes=given["settings"]
        )

    def _files(self, role: str, lesion_mask: Path | None = None) -> ScanFiles:
        from nio_pydra.engines.contract import ScanFiles

        image, mask, labels = (optional_path(getattr(self, name)) for name in (role, f"{role}_mask", f"{role}_labels"))
        assert image is not None
        return ScanFiles(image, mask, labels, lesion_mask, self.skull_stripped)


class NIORegistrationOutputSpec(TraitedSpec):
    """Files in the node's working folder."""

    forward_xfm = File(exists=True, desc="ITK composite, fixed to moving points")
    inverse_xfm = File(exists=True, desc="ITK composite, moving to fixed points")
    warped = File(exists=True, desc="moving image on the fixed grid")
    labels = File(desc="moving labels on the fixed grid, if given")
    fixed_labels = File(desc="labels of the fixed image on the moving grid, if it has labels")
    record = File(exists=True, desc="JSON: settings, time, memory, measures of quality")


class NIORegistration(BaseInterface):
    """Register a moving image to a fixed one by any engine of nio_pydra, in a process of its own.

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
        from nio_pydra.system.forks import in_own_process

        inputs = self.inputs
        in_own_process(
            register_pair, inputs.fixed_files(), inputs.moving_files(), Path(runtime.cwd), inputs.method(),
            runtime=inputs.runtime(),
        )  # fmt: skip
        return runtime

    def _list_outputs(self) -> dict[str, str]:
        names = ["forward_xfm.h5", "inverse_xfm.h5", "warped.nii.gz", "record.json"]
        if isdefined(self.inputs.moving_labels):
            names.append("labels.nii.gz")
        if isdefined(self.inputs.fixed_labels):
            names.append("fixed_labels.nii.gz")
        # nipype lists outputs from inside the node's folder
        return {name.partition(".")[0]: str(Path.cwd() / name) for name in names}
