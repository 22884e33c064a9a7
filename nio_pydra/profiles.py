"""Profiles of what is registered: facts about an organ and its images that no other module may assume."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BRAIN", "PROFILES", "Profile"]


@dataclass(frozen=True)
class Profile:
    """One kind of object in one kind of image.

    Attributes
    ----------
    name : str
        Name on command lines, and word for the object in messages.
    mask_maker : str
        Key of `nio_pydra.engines.masks.MAKERS`: the function that finds the object in an image.
    litres : tuple of float
        Smallest and largest plausible volume of the object.
    suffix, datatype : str
        BIDS suffix and datatype of the images.
    largest_scale : float
        Largest plausible scale of an affine between two such objects; its inverse is the smallest.
    smallest_overlap : float
        Smallest plausible share of the fixed object that the aligned moving one covers.
    smallest_match : float
        Smallest plausible similarity of two aligned objects at 4 mm.
    intensity_window : tuple of float or None
        Lowest and highest meaningful intensity; values beyond them are clipped. None: no limits.
    """

    name: str
    mask_maker: str
    litres: tuple[float, float]
    suffix: str
    datatype: str
    largest_scale: float
    smallest_overlap: float
    smallest_match: float
    intensity_window: tuple[float, float] | None = None


BRAIN = Profile(
    name="brain",
    mask_maker="deepbet",
    # Wide limits for human brains from newborn to adult, with ventricles and cerebellum.
    litres=(0.3, 2.5),
    suffix="T1w",
    datatype="anat",
    # Heads differ by far less, so a larger scale (or a smaller one than its inverse) is a failed alignment.
    largest_scale=2.0,
    smallest_overlap=0.5,
    # Separates aligned scans, unusual ones included, from scans aligned the wrong way round (benchmarks/turns.py,
    # docs/results/turns.md).
    smallest_match=0.3,
)

PROFILES = {profile.name: profile for profile in (BRAIN,)}
