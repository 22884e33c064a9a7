"""Profiles of what is registered: facts about an organ and its images that no other module may assume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BRAIN", "LUNG", "PROFILES", "Limits", "Profile"]


@dataclass(frozen=True)
class Limits:
    """Values of one measure of a registration: beyond `look` it must be looked at, beyond `fail` it cannot be right.

    Attributes
    ----------
    look, fail : tuple of float
        Lowest and highest value.
    """

    look: tuple[float, float] = (-math.inf, math.inf)
    fail: tuple[float, float] = (-math.inf, math.inf)


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
    only_object : bool
        Whether everything outside the mask is set to zero before two images are compared. False: engines see the whole
        images, and the mask says where they compare them.
    outside : float
        Intensity of what lies beyond the border of an image.
    hounsfield : bool
        Whether intensities are Hounsfield units, which is then checked.
    one_patient : bool
        Whether both images show the same patient at two times, so that the same image twice is a mistake.
    preset : str or None
        Preset for these images, used where an engine has it and no other is chosen. None: the engine's first.
    limits : mapping of str to Limits
        Limits for quality control, by the names of `nio_pydra.bids.qc.MEASURES`.
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
    only_object: bool = True
    outside: float = 0.0
    hounsfield: bool = False
    one_patient: bool = False
    preset: str | None = None
    limits: Mapping[str, Limits] = field(default_factory=dict, hash=False)


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
    # Set on the 15 training participants of a labelled data set and on deliberate failures (docs/results/qc.md).
    limits={
        "similarity after the affine": Limits(look=(0.15, math.inf)),
        # Well below zero, bright and dark are exchanged.
        "likeness of contrast": Limits(look=(-0.2, math.inf)),
        "overlap of masks": Limits(look=(0.9, math.inf), fail=(0.75, math.inf)),
        "empty part of the mask": Limits(look=(-math.inf, 4.0), fail=(-math.inf, 15.0)),
        # Good registrations of young adults reach 0.26 and 2.7, of an old brain with large ventricles 0.18 and 3.7.
        "Jacobian, 1st percentile": Limits(look=(0.03, math.inf)),
        "Jacobian, 99th percentile": Limits(look=(-math.inf, 6.0)),
        "folds": Limits(look=(-math.inf, 1.0)),
        "folds before their removal": Limits(look=(-math.inf, 3.0)),
        "smallest scale of the affine": Limits(look=(0.7, math.inf), fail=(0.6, math.inf)),
        "largest scale of the affine": Limits(look=(-math.inf, 1.35), fail=(-math.inf, 1.6)),
        "turn by the affine": Limits(look=(-math.inf, 45)),
    },
)

LUNG = Profile(
    name="lung",
    mask_maker="lungs",
    # One lung of a child at expiration, to both of a tall adult at inspiration.
    litres=(0.3, 10.0),
    suffix="CT",
    datatype="ct",
    # Breathing changes the height of the lungs by a half at most.
    largest_scale=2.0,
    smallest_overlap=0.5,
    smallest_match=0.1,
    # As in the NIO paper: below is air, above is bone, and neither moves a lung.
    intensity_window=(-1200.0, 600.0),
    # The chest's wall is at rest beside a lung that slides along it. It is seen, but not compared.
    only_object=False,
    outside=-1024.0,
    hounsfield=True,
    one_patient=True,
    preset="chest",
)

PROFILES = {profile.name: profile for profile in (BRAIN, LUNG)}
