"""The table of products: each file that results from registering a scan, with its BIDS name, sidecar and description.

The outputs of the `Subject` workflow, the sink, and the README and .bidsignore of the output take their names from
here. A new product needs one row here, and one line in `Subject` that says where the file comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nio_pydra.profiles import BRAIN, PROFILES, Profile

__all__ = ["OWN_MASK", "PRODUCTS", "Destination", "Product"]

OWN_MASK = "nio"
"""``desc`` of the mask that a registration used."""


@dataclass(frozen=True)
class Destination:
    """Output folder of the results of one scan, and the facts for their names and sidecars.

    Attributes
    ----------
    out_dir : str
        Root of the derivative dataset.
    entities : dict of str to str
        Entities of the scan, under pybids's names.
    atlas : str
        Label of the atlas in names of transforms, as ``MNIInfant+1``.
    space : dict of str to str
        Entities of images in the atlas's space: space, and cohort and res if there are any.
    desc : str
        ``desc`` of the results, from `nio_pydra.bids.outputs.engine_desc`.
    source : str
        BIDS URI of the scan.
    atlas_reference : str
        URI of the atlas image.
    skull_stripped : bool
        Whether the scan is zero outside the object.
    labels_desc : str or None
        ``desc`` of the scan's label image.
    labels_source : str or None
        URI of that label image.
    profile : str
        Name of the profile in `nio_pydra.profiles.PROFILES`.
    """

    out_dir: str
    entities: dict[str, str]
    atlas: str
    space: dict[str, str]
    desc: str
    source: str
    atlas_reference: str
    skull_stripped: bool = False
    labels_desc: str | None = None
    labels_source: str | None = None
    profile: str = BRAIN.name

    @property
    def kind(self) -> Profile:
        """What is registered."""
        return PROFILES[self.profile]

    @property
    def resolution(self) -> dict[str, str]:
        """Entry for sidecars of images in the atlas's space, if the user chose a resolution."""
        res = self.space.get("res")
        return {"Resolution": f"Resolution {res} of the template {self.atlas}"} if res else {}


@dataclass(frozen=True)
class Product:
    """One kind of file that results from registering a scan.

    Attributes
    ----------
    name : str
        Name in `Subject` and in the sink.
    text : str
        Description in a line. ``{image}`` and ``{object}`` stand for suffix and name of the profile.
    entities : callable
        Returns the entities of the product for a `Destination`, among them the suffix.
    sidecar : callable or None
        Returns the content of its JSON sidecar for a `Destination`. None: no sidecar.
    extension : str
        Extension of its name.
    optional : bool
        Whether a scan may have none.
    in_bids : bool
        Whether BIDS has a name for such files. Otherwise .bidsignore lists them.
    figure : bool
        Whether it lies in the participant's folder ``figures``, which .bidsignore lists.
    """

    name: str
    text: str
    entities: Callable[[Destination], dict[str, str]]
    sidecar: Callable[[Destination], dict[str, Any]] | None = None
    extension: str = ".nii.gz"
    optional: bool = False
    in_bids: bool = True
    figure: bool = False

    def help(self, profile: Profile = BRAIN) -> str:
        """Return the description in a line."""
        return self.text.format(image=profile.suffix, object=profile.name)


def _figure(kind: str, text: str) -> Product:
    return Product(
        name=f"{kind}_figure",
        text=text,
        entities=lambda to: {**to.space, "desc": to.desc, "suffix": kind},
        extension=".svg",
        optional=True,
        in_bids=False,
        figure=True,
    )


PRODUCTS = (
    Product(
        name="forward_xfm",
        text="ITK transform that resamples the {image} image into the atlas's space",
        entities=lambda to: {"from": to.kind.suffix, "to": to.atlas, "mode": "image", "suffix": "xfm"},
        sidecar=lambda to: {
            "Description": f"ITK composite transform (.h5, LPS mm) from points of {to.atlas} to points of the "
            f"{to.kind.suffix} image: it resamples that image into the space of {to.atlas}.",
            "Sources": [to.source, to.atlas_reference],
            "SpatialReference": {"from": to.source, "to": to.atlas_reference},
        },
        extension=".h5",
        in_bids=False,
    ),
    Product(
        name="inverse_xfm",
        text="its inverse",
        entities=lambda to: {"from": to.atlas, "to": to.kind.suffix, "mode": "image", "suffix": "xfm"},
        sidecar=lambda to: {
            "Description": f"ITK composite transform (.h5, LPS mm) from points of the {to.kind.suffix} image to points "
            f"of {to.atlas}: it resamples images of that space onto the {to.kind.suffix} image.",
            "Sources": [to.source, to.atlas_reference],
            "SpatialReference": {"from": to.atlas_reference, "to": to.source},
        },
        extension=".h5",
        in_bids=False,
    ),
    Product(
        name="warped",
        text="the {image} image in the atlas's space",
        entities=lambda to: {**to.space, "desc": to.desc, "suffix": to.kind.suffix},
        sidecar=lambda to: {
            "Description": f"{to.kind.suffix} image aligned to {to.atlas} by nio_pydra ({to.desc}).",
            "Sources": [to.source, to.atlas_reference],
            "SpatialReference": to.atlas_reference,
            "SkullStripped": to.skull_stripped,
            **to.resolution,
        },
    ),
    Product(
        name="jacobian",
        text="on request: volume in the participant per volume in the atlas, affine included; modulates tissue maps",
        entities=lambda to: {**to.space, "desc": "jacobian", "suffix": "map"},
        sidecar=lambda to: {
            "Description": f"Jacobian determinant of the transform from points of {to.atlas} to points of the "
            f"{to.kind.suffix} image, affine included: volume in that image per volume in {to.atlas}. A tissue map in "
            "this space, multiplied by it, keeps the participant's amount of tissue.",
            "Sources": [to.source, to.atlas_reference],
            "SpatialReference": to.atlas_reference,
            **to.resolution,
        },
        optional=True,
        in_bids=False,
    ),
    Product(
        name="labels",
        text="the participant's labels in the atlas's space",
        entities=lambda to: {**to.space, "desc": to.labels_desc or "", "suffix": "dseg"},
        sidecar=lambda to: {
            "Description": f"Labels of the scan in the space of {to.atlas} (nearest neighbour).",
            "Sources": [to.labels_source or "", to.source, to.atlas_reference],
            "SpatialReference": to.atlas_reference,
            **to.resolution,
        },
        optional=True,
    ),
    Product(
        name="atlas_labels",
        text="the atlas's labels in the participant's space",
        entities=lambda to: {"space": to.kind.suffix, "atlas": to.atlas, "suffix": "dseg"},
        sidecar=lambda to: {
            "Description": f"Labels of {to.atlas} in the space of the {to.kind.suffix} image (nearest neighbour).",
            "Sources": [to.source, to.atlas_reference],
            "SpatialReference": to.source,
        },
        optional=True,
    ),
    Product(
        name="mask",
        text="the {object} mask that was used",
        # fMRIPrep takes a desc-brain_mask in place of its own, and needs it on another grid.
        entities=lambda to: {"desc": OWN_MASK, "suffix": "mask"},
        sidecar=lambda to: {
            "Description": f"{to.kind.name.capitalize()} mask used for the registration.",
            "Type": to.kind.name.capitalize(),
            "Sources": [to.source],
            "SpatialReference": "orig",
        },
    ),
    Product(
        name="conformed_mask",
        text="on request: that mask with its axes in the order RAS, which fMRIPrep takes in place of its own",
        entities=lambda to: {"desc": to.kind.name, "suffix": "mask"},
        sidecar=lambda to: {
            "Description": f"{to.kind.name.capitalize()} mask used for the registration, its axes in the order RAS.",
            "Type": to.kind.name.capitalize(),
            "Sources": [to.source],
            "SpatialReference": "orig",
        },
        optional=True,
    ),
    Product(
        name="record",
        text="settings, time, memory, and measures of the result",
        entities=lambda to: {**to.space, "desc": to.desc, "suffix": "record"},
        extension=".json",
        in_bids=False,
    ),
    _figure("registration", "atlas and registered {image} image, in turn"),
    _figure("mask", "the {image} image with the {object} mask and the atlas's labels"),
    _figure("jacobian", "map of the local change of volume"),
    _figure("labels", "labels of the atlas and the participant's labels"),
)
