"""The atlas that scans are aligned to, and how to make one from files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_image, load_labels, load_mask
from nio_pydra.system.files import read_json

__all__ = ["Atlas", "atlas_from_files", "check_atlas"]


@dataclass(frozen=True)
class Atlas:
    """An image that scans are aligned to.

    Attributes
    ----------
    name : str
        Label in BIDS names: letters and digits.
    image : Path
        3-D image.
    mask : Path or None
        Mask of the object on the same grid. None: it has to be made.
    labels : Path or None
        Label image on the same grid.
    skull_stripped : bool
        Whether the image is zero outside the object.
    reference : str
        BIDS ``SpatialReference`` of images in the atlas's space.
    cohort : str or None
        Cohort of a template, if it has cohorts.
    resolution : str or None
        Index of a template's resolution, if the user chose one.
    """

    name: str
    image: Path
    mask: Path | None
    labels: Path | None
    skull_stripped: bool
    reference: str
    cohort: str | None = None
    resolution: str | None = None

    @property
    def label(self) -> str:
        """Name and cohort as one label, for names of transforms: ``MNIInfant+1``."""
        return self.name if self.cohort is None else f"{self.name}+{self.cohort}"

    @property
    def space(self) -> dict[str, str]:
        """Entities of images in the atlas's space, as in fMRIPrep: space, cohort, res."""
        found = {"space": self.name, "cohort": self.cohort, "res": self.resolution}
        return {key: value for key, value in found.items() if value is not None}


def atlas_from_files(
    image: Path, name: str, *, labels: Path | None = None, mask: Path | None = None, skull_stripped: bool = False
) -> Atlas:
    """Return an atlas made of files.

    Parameters
    ----------
    image : Path
        3-D image. A sidecar beside it may hold ``SkullStripped``.
    name : str
        Label in BIDS names: letters and digits. With a cohort as ``NAME+C`` or ``NAME:cohort-C``.
    labels, mask : Path, optional
        Label image and mask of the object on the same grid.
    skull_stripped : bool
        Whether the image is zero outside the object. A true ``SkullStripped`` of the sidecar says the same.

    Raises
    ------
    InputError
        If the name or one of the files cannot be used.
    """
    parts = re.fullmatch(r"([a-zA-Z0-9]+)(?:(?:\+|:cohort-)([a-zA-Z0-9]+))?", name)
    if parts is None:
        raise InputError(
            f"The atlas name {name!r} cannot be part of a BIDS file name: use letters and digits only, with a cohort "
            "as NAME+C."
        )
    check_atlas(image, labels, mask)
    return Atlas(
        name=parts[1],
        image=image,
        mask=mask,
        labels=labels,
        skull_stripped=skull_stripped or _sidecar(image).get("SkullStripped") is True,
        reference=image.resolve().as_uri(),
        cohort=parts[2],
    )


def check_atlas(image: Path, labels: Path | None, mask: Path | None) -> None:
    """Raise `InputError` if the image of an atlas, its labels or its mask cannot be used."""
    loaded = load_image(image, role="atlas")
    if labels is not None:
        load_labels(labels, like=loaded)
    if mask is not None:
        load_mask(mask)


def _sidecar(image: Path) -> dict[str, object]:
    path = image.with_name(re.sub(r"\.nii(\.gz)?$", "", image.name) + ".json")
    return read_json(path) if path.exists() else {}
