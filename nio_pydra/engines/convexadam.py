"""Engine ``convexadam``: coupled convex search, then Adam on the field (Siebert et al. 2021, 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Image

from nio_pydra.engines.child import answer, run_child
from nio_pydra.engines.contract import Deformation, Engine, Pair, Runtime
from nio_pydra.engines.devices import choose_device
from nio_pydra.engines.network_space import NetworkSpace, grid_of
from nio_pydra.engines.references import SIEBERT_2024
from nio_pydra.engines.stopwatch import Spent, Stopwatch
from nio_pydra.errors import InputError
from nio_pydra.spatial.unit_grid import voxel_to_unit
from nio_pydra.system.scratch import scratch_folder

__all__ = ["CONVEXADAM", "ConvexAdamSettings"]


@dataclass(frozen=True)
class ConvexAdamSettings:
    """Options of ``convex_adam_pt``; every default is the package's own.

    Attributes
    ----------
    mind_radius, mind_dilation : int
        Radius of the patches of the MIND descriptor, and distance between those compared, in voxels.
    grid_spacing, search_radius : int
        Convex search: voxels between two points of its grid, and the farthest displacement in such steps.
    adam_spacing : int
        Voxels between two points of the field that Adam optimises.
    smoothness : float
        Weight of the squared first derivatives of that field (lambda).
    iterations : int
        Steps of Adam.
    smoothing : int
        Edge of the box that smooths the final field three times, in voxels: odd, or 0 for none.
    voxel_size_mm : float
        Of the grid on which both images are compared.
    """

    mind_radius: int = 1
    mind_dilation: int = 2
    grid_spacing: int = 6
    search_radius: int = 4
    adam_spacing: int = 2
    smoothness: float = 1.25
    iterations: int = 80
    smoothing: int = 0
    voxel_size_mm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mind_radius", "mind_dilation", "grid_spacing", "search_radius", "adam_spacing", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
        if not (self.smoothness > 0 and self.voxel_size_mm > 0):
            raise ValueError(
                f"smoothness is {self.smoothness} and voxel_size_mm {self.voxel_size_mm}: expected more than 0"
            )
        if self.smoothing < 0 or (self.smoothing and self.smoothing % 2 == 0):
            raise ValueError(f"smoothing is {self.smoothing}: expected 0 or an odd number")


class ConvexAdamEngine(Engine):
    """ConvexAdam with MIND descriptors, as the package convexAdam runs it."""

    what = "discrete convex search, then Adam on the field, by MIND descriptors; no learning"
    references = (SIEBERT_2024,)
    package = "convexadam"
    presets = MappingProxyType({"mind": ConvexAdamSettings()})

    def run(self, pair: Pair, settings: ConvexAdamSettings, runtime: Runtime) -> Deformation:
        """Register a pair on a common grid, onto which the affine brings the moving image.

        Parameters
        ----------
        pair : Pair
            Its masks blank everything outside, or ConvexAdam continues the images from their masks outwards, as the
            profile wants. It must not have a lesion mask: ConvexAdam compares all voxels.
        settings : ConvexAdamSettings
            Options of ConvexAdam.
        runtime : Runtime
            Device and threads. Nothing is random.

        Returns
        -------
        Deformation
            Forward field on the fixed grid, folds included; no inverse.

        Raises
        ------
        InputError
            If there is a lesion mask, or CUDA is asked for where there is none.
        ProgramError
            If ConvexAdam fails.
        """
        if pair.lesion_mask is not None:
            raise InputError(
                "The engine convexadam cannot leave a lesion out of the comparison: leave out the lesion mask, or "
                "choose another engine."
            )
        device = choose_device(runtime)
        watch = Stopwatch()
        fixed = pair.fixed_object
        conventions = {"orientation": "RAS", "voxel_size_mm": settings.voxel_size_mm}
        grid = grid_of(pair, fixed, conventions, math.lcm(settings.grid_spacing, settings.adam_spacing))
        # Its descriptor of neighbourhoods does not depend on which of two tissues is the brighter one.
        space = NetworkSpace.of(pair, grid, fixed, "percentile", torch.device("cpu"), invert=False)
        before = watch.read()
        with scratch_folder(runtime.scratch) as folder:
            for name, image in (("fixed", space.problem.fixed), ("moving", space.problem.moving)):
                np.save(folder / f"{name}.npy", image[0, 0].numpy())
            for name, region, affine in (
                ("fixed", pair.fixed_region, None),
                ("moving", pair.moving_region, pair.affine),
            ):
                if region is not None:
                    voxels = (grid.sample(region, affine) > 0.5).astype(np.uint8)
                    Nifti1Image(voxels, grid.affine).to_filename(folder / f"{name}_region.nii")
            half = device.type == "cuda" and runtime.precision == "auto"
            request = {
                "options": {
                    "mind_r": settings.mind_radius,
                    "mind_d": settings.mind_dilation,
                    "lambda_weight": settings.smoothness,
                    "grid_sp": settings.grid_spacing,
                    "disp_hw": settings.search_radius,
                    "selected_niter": settings.iterations,
                    "selected_smooth": settings.smoothing,
                    "grid_sp_adam": settings.adam_spacing,
                },
                "device": str(device),
                "precision": "float16" if half else "float32",
                "threads": runtime.thread_count,
            }
            found = run_child(__name__, request, folder, runtime, name="ConvexAdam")
            vectors = torch.from_numpy(np.load(found["warp"]))
        watch = Stopwatch()
        # Component i moves along axis i of the grid, in voxels.
        forward = space.back(voxel_to_unit(vectors.permute(3, 0, 1, 2)[None]))
        details: dict[str, Any] = {
            "device": request["device"],
            "precision": request["precision"],
            "network_grid": list(grid.shape),
            "program": self.fingerprint(settings),
            "peak_memory_mb": found["peak_memory_mb"],
        }
        if device.type == "cuda":
            details["peak_device_memory_mb"] = found["peak_device_memory_mb"]
        return Deformation(forward, None, before + found["spent"] + watch.read(), details)

    def available(self) -> str | None:
        """Say how to install convexAdam where it is missing."""
        if find_spec("convexAdam") is None:
            return "convexAdam is not installed; install it by `pip install convexAdam`."
        return None


CONVEXADAM = ConvexAdamEngine()


def _register(request: dict[str, Any], folder: Path) -> tuple[Spent, dict[str, Any]]:
    """Do the work, in the child: importing convexAdam silences the warnings of its whole process."""
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    regions = {f"path_{name}_mask": folder / f"{name}_region.nii" for name in ("fixed", "moving")}
    if all(path.exists() for path in regions.values()):
        request["options"] |= {"use_mask": True, **regions}
    images = {f"img_{name}": torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("fixed", "moving")}
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the context is made before the watch starts
    watch = Stopwatch()
    vectors = convex_adam_pt(**images, **request["options"], device=device, dtype=getattr(torch, request["precision"]))
    spent = watch.read()
    np.save(folder / "warp.npy", np.asarray(vectors, np.float32))
    found: dict[str, Any] = {"warp": str(folder / "warp.npy")}
    if device.type == "cuda":
        found["peak_device_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return spent, found


if __name__ == "__main__":
    answer(_register)
