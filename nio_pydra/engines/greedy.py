"""Engine ``greedy``: greedy diffeomorphic registration of PICSL (Yushkevich et al. 2016)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image

from nio_pydra.engines.child import answer, run_child, store_images
from nio_pydra.engines.contract import Deformation, Engine, Pair, Runtime
from nio_pydra.engines.references import YUSHKEVICH_2016
from nio_pydra.engines.stopwatch import Spent, Stopwatch
from nio_pydra.spatial.lps import field_from_itk
from nio_pydra.spatial.transforms import Transform, resample
from nio_pydra.system.scratch import scratch_folder

__all__ = ["GREEDY", "GreedySettings"]


@dataclass(frozen=True)
class GreedySettings:
    """Schedule and smoothing of greedy.

    Attributes
    ----------
    radius : int
        Radius of the windows of the local cross-correlation, in voxels of the level.
    iterations : tuple of int
        Iterations per level, coarse to fine. The last level has full resolution.
    update_smoothing_mm, field_smoothing_mm : float
        Standard deviation of the Gaussians that smooth each update and the whole field.
    """

    radius: int = 2
    iterations: tuple[int, ...] = (100, 100, 40)
    update_smoothing_mm: float = 1.5
    field_smoothing_mm: float = 0.5

    def __post_init__(self) -> None:
        if self.radius < 1:
            raise ValueError(f"radius is {self.radius}: expected at least 1")
        if min(self.iterations, default=0) < 0 or sum(self.iterations) == 0:
            raise ValueError(f"iterations is {self.iterations}: expected counts, not all zero")
        if not (self.update_smoothing_mm > 0 and self.field_smoothing_mm >= 0):
            raise ValueError(
                f"update_smoothing_mm is {self.update_smoothing_mm} and field_smoothing_mm {self.field_smoothing_mm}: "
                "expected more than 0 and at least 0"
            )


class GreedyEngine(Engine):
    """Greedy, run by the package picsl-greedy."""

    what = "greedy diffeomorphic registration by local cross-correlation, the fast classical baseline"
    references = (YUSHKEVICH_2016,)
    package = "picsl-greedy"
    presets = MappingProxyType({"default": GreedySettings()})

    def processor_minutes(self, settings: GreedySettings) -> float:
        """Predict the processor time: thrice that in docs/results/speed.md. Each level has an eighth of the voxels."""
        return 3 * sum(count / 8**level for level, count in enumerate(reversed(settings.iterations))) * 1.6 / 60

    def run(self, pair: Pair, settings: GreedySettings, runtime: Runtime) -> Deformation:
        """Register a pair, with its affine as the start.

        Parameters
        ----------
        pair : Pair
            The images are zero outside their masks, or the fixed mask is that of the similarity, as the profile wants.
            The similarity ignores the lesion at the place to which the affine maps it, because greedy weights voxels of
            the fixed image only.
        settings : GreedySettings
            Schedule.
        runtime : Runtime
            Threads and seed.

        Returns
        -------
        Deformation
            Forward field on the fixed grid, without an inverse. The details hold ``peak_memory_mb`` and ``program``.

        Raises
        ------
        ProgramError
            If greedy fails.
        """
        images = {"fixed": pair.fixed_object, "moving": pair.moving_object}
        if pair.lesion_mask is not None or pair.fixed_region is not None:
            images["compared"] = _compared_on_fixed(pair)
        with scratch_folder(runtime.scratch) as folder:
            request = {
                "settings": asdict(settings),
                "affine": np.asarray(pair.affine).tolist(),
                "threads": runtime.thread_count,
                "seed": runtime.seed + 1,  # for greedy, 0 means the time of day
                "images": store_images(images, folder),
            }
            found = run_child(__name__, request, folder, runtime, name="greedy")
            vectors = np.load(found["warp"])
        if vectors.shape[:3] != pair.fixed.shape:
            raise RuntimeError(f"greedy gave a field of shape {vectors.shape[:3]} for the grid {pair.fixed.shape}")
        forward = field_from_itk(vectors, pair.fixed.affine)
        details = {"peak_memory_mb": found["peak_memory_mb"], "program": self.fingerprint(settings)}
        return Deformation(forward, None, found["spent"], details)

    def available(self) -> str | None:
        """Return how to install picsl-greedy if it is missing."""
        if find_spec("picsl_greedy") is None:
            return "picsl-greedy is not installed. Install it with `pip install picsl-greedy`."
        return None


GREEDY = GreedyEngine()


def _compared_on_fixed(pair: Pair) -> Nifti1Image:
    """Return the voxels of the fixed grid that are compared, float32: those of its region without lesion."""
    compared = np.ones(pair.fixed.shape, np.float32)
    if pair.fixed_region is not None:
        compared *= np.asanyarray(pair.fixed_region.dataobj)
    if pair.lesion_mask is not None:
        lesion = resample(pair.lesion_mask, pair.fixed, Transform((pair.affine,)), "nearest")
        compared *= np.asanyarray(lesion.dataobj) == 0
    return Nifti1Image(compared, pair.fixed.affine)


def _register(request: dict[str, Any], folder: Path) -> tuple[Spent, dict[str, Any]]:
    """Register in the child process."""
    import SimpleITK
    from picsl_greedy import Greedy3D

    def itk_image(stored: dict[str, Any]) -> Any:
        image = SimpleITK.GetImageFromArray(np.load(stored["path"]).T)
        image.SetSpacing(stored["spacing"])
        image.SetOrigin(stored["origin"])
        image.SetDirection(np.ravel(stored["direction"]).tolist())
        return image

    images = {role: itk_image(stored) for role, stored in request["images"].items()}
    # Version 1.4 loses a matrix that is passed in memory. In a file it is RAS, as here.
    affine = folder / "affine.mat"
    np.savetxt(affine, request["affine"], fmt="%.15g")
    settings = request["settings"]
    command = [
        "-d 3 -V 0 -threads", request["threads"], "-seed", request["seed"],
        "-i fixed moving", "-gm compared" if "compared" in images else "",
        "-it", affine, "-o warp",
        "-m WNCC", "x".join([str(settings["radius"])] * 3),
        "-n", "x".join(map(str, settings["iterations"])),
        "-s", f"{settings['update_smoothing_mm']}mm", f"{settings['field_smoothing_mm']}mm",
        "-wp 0",  # no rounding of the field
    ]  # fmt: skip
    program, watch = Greedy3D(), Stopwatch()
    program.execute(" ".join(map(str, command)), **images, warp=None)
    spent = watch.read()
    warp = folder / "warp.npy"
    np.save(warp, SimpleITK.GetArrayFromImage(program["warp"]).transpose(2, 1, 0, 3))
    return spent, {"warp": str(warp)}


if __name__ == "__main__":
    answer(_register)
