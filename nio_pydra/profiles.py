"""What is registered: the facts about an organ and its images that the rest of the package must not assume."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BRAIN", "PROFILES", "Profile"]


@dataclass(frozen=True)
class Profile:
    """One kind of object in one kind of image.

    Attributes
    ----------
    name : str
        Name on command lines, and the word for the object in messages.
    mask_maker : str
        Function of `nio_pydra.engines.masks.MAKERS` that finds the object in an image.
    litres : tuple of float
        Smallest and largest plausible volume of the object.
    suffix, datatype : str
        BIDS suffix and datatype of its images.
    largest_scale : float
        Largest plausible stretch by an affine between two such objects; its inverse is the smallest.
    smallest_overlap : float
        Share of the fixed object that the moving one covers at least, once they are aligned.
    smallest_match : float
        Similarity at 4 mm that two aligned objects have at least.
    intensity_window : tuple of float or None
        Lowest and highest intensity that mean something; what is beyond is clipped. None: all do.
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
    # Wide around human brains from newborn to adult, ventricles and cerebellum included.
    litres=(0.3, 2.5),
    suffix="T1w",
    datatype="anat",
    # Heads differ by far less in any direction, so a larger stretch (or its inverse) is a failed alignment.
    largest_scale=2.0,
    smallest_overlap=0.5,
    # Between scans that are aligned, unusual ones too, and scans that ended the wrong way round:
    # benchmarks/turns.py, docs/results/turns.md.
    smallest_match=0.3,
)

PROFILES = {profile.name: profile for profile in (BRAIN,)}
