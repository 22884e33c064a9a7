"""Input and output of every registration engine. Later steps do not know which engine ran."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.engines.names import LARGEST_SEED
from nio_pydra.engines.references import Reference
from nio_pydra.engines.stopwatch import Spent
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.spatial.transforms import DisplacementField
from nio_pydra.system.cores import default_threads

__all__ = [
    "Deformation", "Engine", "Memory", "Pair", "Runtime", "ScanFiles", "comparable", "foreground_only", "inside",
]  # fmt: skip


@dataclass(frozen=True)
class ScanFiles:
    """Files of an image: the image itself, its masks and its labels.

    Attributes
    ----------
    image : Path
        3-D image.
    mask : Path or None
        Mask of the object. None: it is made from the image.
    labels : Path or None
        Label map on the image's grid.
    lesion_mask : Path or None
        Mask of a region without a counterpart in other images. That of a moving image is used, that of a fixed one not.
    skull_stripped : bool
        Whether the image is zero outside the object, so that a missing mask can be read from it.
    landmarks : Path or None
        Points of the image (:func:`nio_pydra.spatial.landmarks.read_landmarks`), in the order of the other image's.
    """

    image: Path
    mask: Path | None = None
    labels: Path | None = None
    lesion_mask: Path | None = None
    skull_stripped: bool = False
    landmarks: Path | None = None


@dataclass(frozen=True)
class Runtime:
    """Device, threads and other choices of the computation. None should change a result by more than rounding.

    Attributes
    ----------
    device : {"auto", "cpu", "cuda"}
        "auto" takes a GPU if there is one.
    threads : int
        Number of threads. 0: OMP_NUM_THREADS, or all cores of the process if that is not set.
    seed : int
        Random seed, 0 or more.
    precision : {"auto", "float32"}
        "auto" runs the network's convolutions in bfloat16 where that is faster.
    progress : bool or None
        Whether to report progress. None: a bar on a terminal, log lines otherwise.
    scratch : Path or None
        Folder for large temporary files. None: that of the system.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    seed: int = 0
    precision: Literal["auto", "float32"] = "auto"
    progress: bool | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}: expected auto, cpu or cuda")
        if self.precision not in ("auto", "float32"):
            raise ValueError(f"precision is {self.precision!r}: expected auto or float32")
        if self.threads < 0:
            raise ValueError(f"threads is {self.threads}: expected 0 (all) or more")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed is {self.seed}: expected 0 to {LARGEST_SEED}")

    @property
    def thread_count(self) -> int:
        """Number of threads to use."""
        return self.threads or default_threads()


@dataclass(frozen=True)
class Pair:
    """Two images and their affine alignment.

    Attributes
    ----------
    fixed, moving : Nifti1Image
        float32 ``(X, Y, Z)``.
    affine : ndarray
        4x4, RAS mm, FIXED points to MOVING points.
    fixed_mask, moving_mask : Nifti1Image or None
        Masks of the object on the grids of their images. None: the image is zero outside the object.
    lesion_mask : Nifti1Image or None
        Mask, on the moving grid, of a region without a counterpart. The similarity ignores it.
    profile : Profile
        Profile of the images.
    """

    fixed: Nifti1Image
    moving: Nifti1Image
    affine: NDArray[np.floating]
    fixed_mask: Nifti1Image | None = None
    moving_mask: Nifti1Image | None = None
    lesion_mask: Nifti1Image | None = None
    profile: Profile = BRAIN

    @property
    def fixed_foreground(self) -> NDArray[np.bool_]:
        """Voxels of the object in the fixed image, ``(X, Y, Z)``, in which results are measured."""
        return inside(self.fixed, self.fixed_mask)

    @property
    def fixed_object(self) -> Nifti1Image:
        """Fixed image for the comparison; see :func:`comparable`."""
        return comparable(self.fixed, self.fixed_mask, self.profile)

    @property
    def moving_object(self) -> Nifti1Image:
        """Moving image for the comparison; see :func:`comparable`."""
        return comparable(self.moving, self.moving_mask, self.profile)

    @property
    def fixed_region(self) -> Nifti1Image | None:
        """Region of the fixed image to compare, uint8 on its grid. None: the images are zero outside it."""
        return None if self.profile.only_object else _as_image(self.fixed, self.fixed_foreground)

    @property
    def moving_region(self) -> Nifti1Image | None:
        """The same of the moving image."""
        return None if self.profile.only_object else _as_image(self.moving, inside(self.moving, self.moving_mask))


@dataclass(frozen=True)
class Deformation:
    """Deformation that an engine found after the affine.

    Attributes
    ----------
    forward : DisplacementField or None
        Field u on the fixed grid. A fixed point x goes to ``x + u(x)``, and then through the affine. None: the
        identity.
    inverse : DisplacementField or None
        Field v on the fixed grid. A moving point goes through the affine's inverse to y, and then to ``y + v(y)``.
        None: the engine gives no inverse, and it is computed from `forward`.
    spent : Spent
        Time from images in memory to fields in memory, without the start of a process and the loading of weights.
    details : dict
        Other values for the record (JSON).
    """

    forward: DisplacementField | None
    inverse: DisplacementField | None
    spent: Spent
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """Predicted peak memory of one registration, MiB.

    Attributes
    ----------
    process : float
        Memory of the process.
    device : float
        Memory of the GPU; 0 if none is used.
    """

    process: float
    device: float = 0.0


class Engine(ABC):
    """A registration engine. Each has a module with a subclass, and a line in `nio_pydra.engines.names`.

    Attributes
    ----------
    what : str
        Description in one line.
    references : tuple of Reference
        Publications to cite, the method's own first.
    presets : mapping of str to dataclass instance
        Frozen settings by name, the default first. If they have a field ``weights``, a network's weights can be chosen.
    package : str or None
        Package on whose version results depend.
    threads : int
        Number of threads on a cluster, where nothing else is asked for.
    """

    what: str
    references: tuple[Reference, ...]
    presets: Mapping[str, Any]
    package: str | None = None
    threads: int = 4

    @property
    def citation(self) -> str:
        """The references in a line."""
        return "; ".join(map(str, self.references))

    def described(self, settings: Any) -> str:
        """Return what the engine does with these settings, in one line."""
        return self.what

    @abstractmethod
    def run(self, pair: Pair, settings: Any, runtime: Runtime) -> Deformation:
        """Find the deformation that remains after the pair's affine.

        Raises
        ------
        InputError
            If the pair or the settings cannot be used.
        ProgramError, ComputationError
            If the registration fails.
        """

    def fingerprint(self, settings: Any) -> str:
        """Return the version of programs and weights: what results depend on besides this package and the settings.

        Raises
        ------
        InputError
            If the weights cannot be used.
        """
        return f"{self.package}-{version(self.package)}" if self.package else ""

    def memory_mb(self, fixed_object: Nifti1Image, settings: Any, runtime: Runtime) -> Memory | None:
        """Predict the peak memory from an image that is not zero in the fixed object only. None: unknown."""
        return None

    def processor_minutes(self, settings: Any) -> float:
        """Predict a processor time that one registration on a slow processor does not exceed, for time limits."""
        return 120.0

    def weights_used(self, settings: Any) -> tuple[str, str] | None:
        """Return the name of the network's weights and what they were trained on. None without a network.

        Raises
        ------
        InputError
            If the weights cannot be used.
        """
        return None

    def available(self) -> str | None:
        """Return None, or a sentence about what is missing and how to install it."""
        return None


def inside(image: Nifti1Image, mask: Nifti1Image | None) -> NDArray[np.bool_]:
    """Return the voxels ``(X, Y, Z)`` of a mask; without one, the voxels of the image that are not zero."""
    return np.asanyarray((image if mask is None else mask).dataobj) != 0


def comparable(image: Nifti1Image, mask: Nifti1Image | None, profile: Profile = BRAIN) -> Nifti1Image:
    """Return an image as engines compare it: float32 without negative voxels.

    Parameters
    ----------
    image, mask, profile
        See :func:`foreground_only`.

    Returns
    -------
    Nifti1Image
        The object alone, where the profile wants that (:func:`foreground_only`). Otherwise the whole image in the
        profile's `intensity_window`, whose lower end is 0.

    Raises
    ------
    InputError
        As :func:`foreground_only`.
    """
    if profile.only_object or profile.intensity_window is None:
        return foreground_only(image, mask, profile)
    low, high = profile.intensity_window
    data = image.get_fdata(dtype=np.float32, caching="unchanged")
    return Nifti1Image(np.clip(data, low, high) - np.float32(low), image.affine)


def _as_image(image: Nifti1Image, voxels: NDArray[np.bool_]) -> Nifti1Image:
    return Nifti1Image(voxels.astype(np.uint8), image.affine)


def foreground_only(image: Nifti1Image, mask: Nifti1Image | None, profile: Profile = BRAIN) -> Nifti1Image:
    """Set all voxels outside a mask to zero, and make zero the darkest value.

    A standardised image has negative voxels. With a background of zero between its tissues, a registration could not
    see the edge of the object, and interpolation would draw a bright rim. So the darkest voxel is subtracted from such
    an image. Images without negative voxels keep their values. Of an intensity window the lower end is subtracted, if
    it is negative.

    Parameters
    ----------
    image : Nifti1Image
        ``(X, Y, Z)``.
    mask : Nifti1Image or None
        Mask on the image's grid, not zero inside. None: all voxels that are not zero.
    profile : Profile
        Profile of the image, whose `intensity_window` is applied first.

    Returns
    -------
    Nifti1Image
        float32 without negative voxels, with the image's affine.

    Raises
    ------
    InputError
        If all voxels inside the mask are zero.
    """
    data, kept = image.get_fdata(dtype=np.float32, caching="unchanged"), inside(image, mask)
    if profile.intensity_window is not None:
        data = np.clip(data, *profile.intensity_window)
    if not data[kept].any():
        raise InputError(
            f"{image.get_filename() or 'The image'} is zero in all of its {profile.name} mask: "
            f"expected a mask that covers the {profile.name}. Is it the mask of another image, or inverted?"
        )
    lowest = data[kept].min() if profile.intensity_window is None else profile.intensity_window[0]
    darkest = np.float32(min(0.0, lowest))
    return Nifti1Image(np.where(kept, data - darkest, np.float32(0)), image.affine)
