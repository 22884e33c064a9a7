"""Nipype interface: a registration to a template, with the inputs and outputs that niworkflows has for ANTs."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import BaseInterface, File, Undefined, isdefined, traits

from nio_pydra.engines.names import get_engine
from nio_pydra.errors import InputError
from nio_pydra.interfaces.inputs import EngineInputSpec, optional_path

try:
    from niworkflows.interfaces.norm import SpatialNormalization
except ImportError as error:
    raise ImportError(f"This needs niworkflows ({error}): run pip install 'smriprep>=0.18'.") from error

if TYPE_CHECKING:
    from nio_pydra.engines.contract import ScanFiles
    from nio_pydra.engines.methods import Method

__all__ = ["NIOSpatialNormalization", "preset_for"]

log = logging.getLogger("nio_pydra")

PRESETS = {"testing": ("draft", "fast"), "fast": ("fast",), "precise": ("precise",)}
"""Presets for each flavor of niworkflows, the best first. An engine that has none of them takes its first preset."""
IGNORED = {
    "settings": "these are settings of ANTs; those of the engine are `engine_settings`",
    "initial_moving_transform": "the alignment starts from the centres of mass",
    "use_histogram_matching": "the similarity is local",
    "float": "`precision` governs the precision",
    "explicit_masking": "images are always set to zero outside their masks",
}
"""Inputs without a meaning here, and why."""


class NIOSpatialNormalizationInputSpec(EngineInputSpec, SpatialNormalization.input_spec):  # type: ignore[misc]
    """Inputs of niworkflows' interface, and those of an engine."""

    engine_settings = traits.Dict(desc="settings of the engine that differ from the preset's")

    def fixed_files(self) -> ScanFiles:
        """Return the reference image, or the template's image that niworkflows would choose, with its mask."""
        from niworkflows.utils.misc import get_template_specs
        from templateflow.api import get

        from nio_pydra.engines.contract import ScanFiles

        if isdefined(self.reference_image):
            return ScanFiles(Path(self.reference_image), optional_path(self.reference_mask))
        wanted = dict(self.template_spec) if isdefined(self.template_spec) else {}
        if isdefined(self.template_resolution):
            wanted["res"] = self.template_resolution
        image, spec = get_template_specs(
            self.template,
            template_spec={**wanted, "suffix": self.reference, "desc": None},
            default_resolution=1 if self.flavor == "precise" else 2,
            fallback=True,
        )
        masks = (get(self.template, suffix="mask", **key, **spec) for key in ({"desc": "brain"}, {"label": "brain"}))
        return ScanFiles(Path(image), next((Path(mask) for mask in masks if mask), None))

    def method(self) -> Method:
        """Return the engine with the settings that its preset, or else the flavor, names."""
        from nio_pydra.engines.methods import choose_method

        preset = self.preset if isdefined(self.preset) else preset_for(self.engine, self.flavor)
        changes = self.engine_settings if isdefined(self.engine_settings) else None
        return choose_method(self.engine, preset, weights=optional_path(self.weights), changes=changes)


class NIOSpatialNormalizationOutputSpec(SpatialNormalization.output_spec):  # type: ignore[misc]
    """Outputs of niworkflows' interface, and the record."""

    record = File(exists=True, desc="JSON: settings, time, memory, measures of quality")


class NIOSpatialNormalization(BaseInterface):
    """Register a T1w image to a template or another image, in place of niworkflows' `SpatialNormalization`.

    Inputs and outputs have the same names and meanings. The flavors `precise`, `fast` and `testing` become presets of
    the engine, unless `preset` is given. Inputs that only ANTs understands are ignored, and a warning says so.

    Examples
    --------
    >>> from nio_pydra.interfaces import NIOSpatialNormalization
    >>> normalize = NIOSpatialNormalization(template="MNI152NLin6Asym", flavor="fast")
    >>> normalize.inputs.method().preset
    'fast'
    """

    input_spec = NIOSpatialNormalizationInputSpec
    output_spec = NIOSpatialNormalizationOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from nio_pydra.engines.chain import register_pair
        from nio_pydra.engines.contract import ScanFiles
        from nio_pydra.engines.registration import warp
        from nio_pydra.system.forks import in_own_process

        inputs, out_dir = self.inputs, Path(runtime.cwd)
        _require_t1w(inputs)
        for name, reason in IGNORED.items():
            trait = inputs.trait(name)
            if getattr(inputs, name) != (trait.default if trait.usedefault else Undefined):
                _say_once(f"NIOSpatialNormalization ignores the input {name}: {reason}.")
        moving = ScanFiles(
            Path(inputs.moving_image), optional_path(inputs.moving_mask), None, optional_path(inputs.lesion_mask)
        )
        fixed = inputs.fixed_files()
        record = in_own_process(register_pair, fixed, moving, out_dir, inputs.method(), runtime=inputs.runtime())
        logging.getLogger("nipype.interface").info(  # nipype deletes the record where it is not connected
            "%s to %s by %s (%s): similarity %.3f -> %.3f, folds %.2f %%, %.0f s",
            moving.image, fixed.image, record["engine"], record["preset"], record["similarity"]["before"],
            record["similarity"]["after"], record["fold_percent"], record["seconds"]["registration"],
        )  # fmt: skip
        inverse = (fixed.image, moving.image, out_dir / "inverse_xfm.h5", out_dir / "inverse_warped.nii.gz")
        in_own_process(warp, *inverse)
        return runtime

    def _list_outputs(self) -> dict[str, Any]:
        folder = Path.cwd()  # nipype lists outputs from inside the node's folder
        forward, inverse = str(folder / "forward_xfm.h5"), str(folder / "inverse_xfm.h5")
        seconds = json.loads((folder / "record.json").read_text())["seconds"]
        return {
            **self.output_spec().get(),
            "composite_transform": forward,
            "inverse_composite_transform": inverse,
            "forward_transforms": [forward],
            "reverse_forward_transforms": [forward],
            "reverse_transforms": [inverse],
            "forward_invert_flags": [False],
            "reverse_forward_invert_flags": [False],
            "reverse_invert_flags": [False],
            "warped_image": str(folder / "warped.nii.gz"),
            "inverse_warped_image": str(folder / "inverse_warped.nii.gz"),
            "elapsed_time": seconds["affine"] + seconds["registration"],
            "reference_image": str(self.inputs.fixed_files().image),
            "record": str(folder / "record.json"),
        }


def preset_for(engine: str, flavor: str) -> str:
    """Return the preset of an engine that stands for a flavor of niworkflows."""
    presets = get_engine(engine).presets
    return next((preset for preset in PRESETS[flavor] if preset in presets), next(iter(presets)))


def _require_t1w(inputs: NIOSpatialNormalizationInputSpec) -> None:
    for name in ("moving", "reference"):
        if (found := getattr(inputs, name)) != "T1w":
            raise InputError(
                f"The input {name} is {found}: expected T1w, the only images that nio_pydra is made for. Use "
                "niworkflows' SpatialNormalization."
            )


@cache
def _say_once(text: str) -> None:
    log.warning(text)
