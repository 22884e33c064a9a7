"""Nipype interface: a registration to a template that draws the report of fMRIPrep and its relatives."""

from __future__ import annotations

from typing import Any

from nio_pydra.interfaces.spatial_normalization import (
    NIOSpatialNormalization,
    NIOSpatialNormalizationInputSpec,
    NIOSpatialNormalizationOutputSpec,
)

# After ours, which says what to install where niworkflows is absent.
from niworkflows.interfaces.reportlets.base import RegistrationRC  # isort: skip
from niworkflows.interfaces.reportlets.registration import SpatialNormalizationRPT  # isort: skip

__all__ = ["NIOSpatialNormalizationRPT"]


class NIOSpatialNormalizationInputSpecRPT(NIOSpatialNormalizationInputSpec, SpatialNormalizationRPT.input_spec):  # type: ignore[misc]
    """Inputs of the registration and of its report."""


class NIOSpatialNormalizationOutputSpecRPT(NIOSpatialNormalizationOutputSpec, SpatialNormalizationRPT.output_spec):  # type: ignore[misc]
    """Outputs of the registration, and its report."""


class NIOSpatialNormalizationRPT(RegistrationRC, NIOSpatialNormalization):  # type: ignore[misc]
    """:class:`NIOSpatialNormalization` with a report that flickers between the reference and the warped image."""

    input_spec = NIOSpatialNormalizationInputSpecRPT
    output_spec = NIOSpatialNormalizationOutputSpecRPT

    def _post_run_hook(self, runtime: Any) -> Any:
        from nio_pydra.spatial.images import load_image, same_grid

        fixed = self.inputs.fixed_files()
        self._fixed_image = str(fixed.image)
        self._moving_image = self.aggregate_outputs(runtime=runtime).warped_image
        if fixed.mask is not None and same_grid(load_image(fixed.mask, "mask"), load_image(fixed.image, "reference")):
            self._fixed_image_mask = str(fixed.mask)
        return super()._post_run_hook(runtime)
