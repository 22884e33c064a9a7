"""The table of products: every file that registering one scan gives, its BIDS name, its sidecar and what it is.

The outputs of the `Subject` workflow, the sink, and the README and .bidsignore of the output take their names from
here. Another product is one row of the table, and one line in `Subject` that says where the file comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nio_pydra.profiles import BRAIN, PROFILES, Profile

__all__ = ["PRODUCTS", "Destination", "Product"]


@dataclass(frozen=True)
class Destination:
    """Where the results of one scan go, and what their names and sidecars say.

    Attributes
    ----------
    out_dir : str
        Root of the derivative dataset.
    entities : dict of str to str
        pybids entities of the scan.
    atlas : str
        Name of the atlas in names of transforms, as ``MNIInfant+1``.
    space : dict of str to str
        Entities of images in its space: space, and perhaps cohort and res.
    desc : str
        What `nio_pydra.bids.outputs.engine_desc` gives.
    source : str
        BIDS URI of the scan.
    atlas_reference : str
        URI of the atlas image.
    skull_stripped : bool
        The scan shows the object only.
    labels_desc : str or None
        ``desc`` of the scan's own label image.
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
        """What sidecars of images in the atlas's space say about a resolution that was asked for."""
        return (
            {"Resolution": f"Resolution {res} of the template {self.atlas}"} if (res := self.space.get("res")) else {}
        )


@dataclass(frozen=True)
class Product:
    """One kind of file that registering a scan gives.

    Attributes
    ----------
    name : str
        Name in `Subject` and in the sink.
    text : str
        What it is, in a line; ``{image}`` and ``{object}`` stand for suffix and name of the profile.
    entities : callable
        The pybids entities of its own, from a `Destination`; one of them is the suffix.
    sidecar : callable or None
        Content of the JSON file beside it, from a `Destination`; None: it has no such file.
    extension : str
    optional : bool
        Not every scan has one.
    in_bids : bool
        BIDS has a name for such files. Otherwise .bidsignore lists them.
    """

    name: str
    text: str
    entities: Callable[[Destination], dict[str, str]]
    sidecar: Callable[[Destination], dict[str, Any]] | None = None
    extension: str = ".nii.gz"
    optional: bool = False
    in_bids: bool = True

    def help(self, profile: Profile = BRAIN) -> str:
        """Return what it is, in a line."""
        return self.text.format(image=profile.suffix, object=profile.name)


PRODUCTS = (
    Product(
        name="forward_xfm",
        text="ITK transform that resamples the {image} image into the atlas's space",
        entities=lambda to: {"from": to.kind.suffix, "to": to.atlas, "mode": "image", "suffix": "xfm"},
        extension=".h5",
        in_bids=False,
    ),
    Product(
        name="inverse_xfm",
        text="its inverse",
        entities=lambda to: {"from": to.atlas, "to": to.kind.suffix, "mode": "image", "suffix": "xfm"},
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
        entities=lambda to: {"desc": to.kind.name, "suffix": "mask"},
        sidecar=lambda to: {
            "Description": f"{to.kind.name.capitalize()} mask used for the registration.",
            "Type": to.kind.name.capitalize(),
            "Sources": [to.source],
            "SpatialReference": "orig",
        },
    ),
    Product(
        name="record",
        text="settings, time, memory, and measures of the result",
        entities=lambda to: {**to.space, "desc": to.desc, "suffix": "record"},
        extension=".json",
        in_bids=False,
    ),
)
