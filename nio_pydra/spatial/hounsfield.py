"""Check that a CT holds Hounsfield units."""

from __future__ import annotations

import numpy as np
from nibabel.nifti1 import Nifti1Image

from nio_pydra.errors import InputError

__all__ = ["require_hounsfield"]

AIR_HU = -500.0
LEAST_AIR = 0.005
"""Share of voxels below `AIR_HU` in an image that shows lungs, at least."""
PADDING_HU = -1200.0
"""Voxels below hold no measurement: they fill the corners that a round field of view leaves."""
GREY_VALUES = 255.0
OFFSET = 1024


def require_hounsfield(image: Nifti1Image) -> None:
    """Refuse a CT whose values are not Hounsfield units, in which air is -1000 and water 0.

    Raises
    ------
    InputError
        If too few voxels are as dark as air.
    """
    values = np.asanyarray(image.dataobj)
    values = values[values >= PADDING_HU] if (values >= PADDING_HU).any() else values
    if (values < AIR_HU).mean() >= LEAST_AIR:
        return
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= GREY_VALUES:
        remedy = "They look like grey values of a picture: convert the CT from its DICOM files again."
    elif low >= 0 and (values < OFFSET + AIR_HU).mean() >= LEAST_AIR:
        remedy = f"They look like Hounsfield units with {OFFSET} added: subtract {OFFSET}."
    else:
        remedy = "Is it a CT that shows air or lungs? Convert it from its DICOM files again."
    raise InputError(
        f"{image.get_filename() or 'The image'} has values from {low:g} to {high:g}, hardly any of them below "
        f"{AIR_HU:g}: expected Hounsfield units (air -1000, water 0). {remedy}"
    )
