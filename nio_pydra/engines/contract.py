"""What every registration engine takes and returns; nothing downstream knows which engine ran."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.engines.names import LARGEST_SEED
from nio_pydra.engines.stopwatch import Spent
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.spatial.transforms import DisplacementField
from nio_pydra.system.cores import default_threads

__all__ = ["Deformation", "Engine", "Memory", "Pair", "Runtime", "ScanFiles", "foreground_only", "inside"]


@dataclass(frozen=True)
class ScanFiles:
    """An image and what belongs to it, as files.

    Attributes
    ----------
    image : Path
        3-D image.
    mask : Path or None
        Where the object is. None: it is found in the image.
    labels : Path or None
        Label map on the image's grid.
    lesion_mask : Path or None
        Region without a counterpart in other images.
    skull_stripped : bool
        Whether the image shows nothing but the object: a missing mask is then read off the image.
    """

    image: Path
    mask: Path | None = None
    labels: Path | None = None
    lesion_mask: Path | None = None
    skull_stripped: bool = False


@dataclass(frozen=True)
class Runtime:
    """Where and how to compute; none of it should change a result by more than rounding.

    Attributes
    ----------
    device : {"auto", "cpu", "cuda"}
        "auto" takes a GPU where there is one.
    threads : int
        0: as many as OMP_NUM_THREADS says; where that is not set, all cores that the process may use.
    seed : int
        Random seed, 0 or more.
    precision : {"auto", "float32"}
        "auto" lets the network's convolutions run in bfloat16 where that is faster.
    progress : bool or None
        None: a bar on a terminal, log lines otherwise.
    scratch : Path or None
        Folder for large temporary files. None: the system's.
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
    """Two images and how they are aligned so far.

    Attributes
    ----------
    fixed, moving : Nifti1Image
        float32 ``(X, Y, Z)``.
    affine : ndarray
        4x4, RAS mm, FIXED points to MOVING points.
    fixed_mask, moving_mask : Nifti1Image or None
        Masks of the object on the grids of their images. None: the image is zero outside the object.
    lesion_mask : Nifti1Image or None
        Region of the moving image without a counterpart, on its grid; taken out of the similarity.
    profile : Profile
        What the images show.
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
        """Voxels of the object in the fixed image, ``(X, Y, Z)``: where results are measured."""
        return inside(self.fixed, self.fixed_mask)

    @property
    def fixed_object(self) -> Nifti1Image:
        """The fixed image as it is compared, zero outside the object; see :func:`foreground_only`."""
        return foreground_only(self.fixed, self.fixed_mask, self.profile)

    @property
    def moving_object(self) -> Nifti1Image:
        """The moving image as it is compared."""
        return foreground_only(self.moving, self.moving_mask, self.profile)


@dataclass(frozen=True)
class Deformation:
    """What an engine found beyond the affine.

    Attributes
    ----------
    forward : DisplacementField or None
        On the fixed grid: a fixed point x goes to ``x + u(x)`` (then through the affine). None: the identity.
    inverse : DisplacementField or None
        On the fixed grid: a moving point, brought back through the affine's inverse, goes to ``y + v(y)``. None where
        the engine gives no inverse; it is then computed from `forward`.
    spent : Spent
        From images in memory to the fields in memory: without the start of a process and the loading of weights.
    details : dict
        What else belongs in the record (JSON values).
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
        Of the process.
    device : float
        Of the GPU; 0 where none is used.
    """

    process: float
    device: float = 0.0


class Engine(ABC):
    """A registration method: one module with one of these, and one line in `nio_pydra.engines.names`.

    Attributes
    ----------
    what : str
        What it is, in a line.
    citation : str
        Whom to cite.
    presets : mapping of str to dataclass instance
        Frozen settings by name, the default first. A field ``weights`` says that a network's weights can be chosen.
    """

    what: str
    citation: str
    presets: Mapping[str, Any]

    @abstractmethod
    def run(self, pair: Pair, settings: Any, runtime: Runtime) -> Deformation:
        """Find the deformation that is left after the pair's affine.

        Raises
        ------
        InputError
            If the pair or the settings cannot be used.
        ProgramError, ComputationError
            If the registration fails.
        """

    def fingerprint(self, settings: Any) -> str:
        """Return what results depend on beside this package's code and the settings: weights, a program's version.

        Raises
        ------
        InputError
            If the weights cannot be used.
        """
        return ""

    def memory_mb(self, fixed: Nifti1Image, mask: Nifti1Image | None, settings: Any, runtime: Runtime) -> Memory | None:
        """Predict the peak memory from the fixed image and its mask; None where nothing is known."""
        return None

    def available(self) -> str | None:
        """Return None, or a sentence that says what is missing and how to install it."""
        return None


def inside(image: Nifti1Image, mask: Nifti1Image | None) -> NDArray[np.bool_]:
    """Return the voxels of an image that count: those of its mask, or all that are not zero; ``(X, Y, Z)``."""
    return np.asanyarray((image if mask is None else mask).dataobj) != 0


def foreground_only(image: Nifti1Image, mask: Nifti1Image | None, profile: Profile = BRAIN) -> Nifti1Image:
    """Set everything outside a mask to zero, and keep zero the darkest value.

    A standardised image has negative voxels. If its background were left between its tissues, the edge of the object
    would be invisible to a registration and interpolation would draw a bright rim. Such an image is raised by its
    darkest voxel; the images that have none are left as they are.

    Parameters
    ----------
    image : Nifti1Image
        ``(X, Y, Z)``.
    mask : Nifti1Image or None
        Non-zero inside, on the image's grid; None takes all voxels that are not zero.
    profile : Profile
        What the image shows: its `intensity_window` is applied first.

    Returns
    -------
    Nifti1Image
        float32, the image's affine, no voxel below zero.

    Raises
    ------
    InputError
        If nothing is left.
    """
    data, kept = image.get_fdata(dtype=np.float32, caching="unchanged"), inside(image, mask)
    if profile.intensity_window is not None:
        data = np.clip(data, *profile.intensity_window)
    if not data[kept].any():
        raise InputError(
            f"{image.get_filename() or 'The image'} is zero in all of its {profile.name} mask: "
            f"expected the mask to cover the {profile.name}. Is it the mask of another image, or inverted?"
        )
    darkest = np.float32(min(0.0, data[kept].min()))
    return Nifti1Image(np.where(kept, data - darkest, np.float32(0)), image.affine)
