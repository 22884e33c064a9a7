"""Registration by antspyx in a process of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.engines.child import answer, run_child, store_images
from nio_pydra.engines.stopwatch import Spent, Stopwatch
from nio_pydra.spatial.lps import swap_ras_lps

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Runtime

__all__ = ["AntsOptions", "AntsResult", "run_ants"]


@dataclass(frozen=True)
class AntsOptions:
    """Arguments of `ants.registration` that this package sets.

    Attributes
    ----------
    type_of_transform : str
        Name of the schedule in antspyx: "Affine" or "SyNOnly".
    syn_metric : str
        Similarity of the deformable stage: "mattes" or "CC".
    syn_sampling : int
        Number of histogram bins of "mattes", or window radius of "CC" in voxels.
    reg_iterations : tuple of int
        Iterations of the deformable stage per level, coarse to fine. Each level doubles the resolution; the last has
        full resolution.
    search : tuple of float and bool, or None
        Search for the start of an affine among turns in all directions: degrees between two turns, and whether the
        principal axes are aligned first. None: no search.
    update_variance, field_variance : float
        Variances of the Gaussians that smooth the updates of the deformable stage, and its whole field, in voxels
        squared of the level.
    """

    type_of_transform: str
    syn_metric: str = "mattes"
    syn_sampling: int = 32
    reg_iterations: tuple[int, ...] = (40, 20, 0)
    search: tuple[float, bool] | None = None
    update_variance: float = 3.0
    field_variance: float = 0.0


@dataclass(frozen=True)
class AntsResult:
    """Result of a registration by ANTs.

    Attributes
    ----------
    affine : ndarray
        4x4, fixed to moving points, RAS mm.
    warp, inverse_warp : Path or None
        ITK displacement fields (LPS mm) on the fixed grid. None after a linear registration.
    spent : Spent
        Time of `ants.registration` alone, without start-up and reading. antspyx writes its warps inside that call, so
        it contains a few seconds of compression.
    peak_memory_mb : float
        Peak memory of the process, MiB.
    starts : int
        Number of starts that an affine was searched from until it aligned the objects.
    """

    affine: NDArray[np.float64]
    warp: Path | None
    inverse_warp: Path | None
    spent: Spent
    peak_memory_mb: float
    starts: int = 1


def run_ants(
    fixed: Nifti1Image,
    moving: Nifti1Image,
    options: AntsOptions,
    folder: Path,
    runtime: Runtime,
    *,
    affine: NDArray[np.floating] | None = None,
    lesion: Nifti1Image | None = None,
    regions: tuple[Nifti1Image | None, Nifti1Image | None] = (None, None),
) -> AntsResult:
    """Run one `ants.registration`.

    Parameters
    ----------
    fixed, moving : Nifti1Image
        ``(X, Y, Z)``, zero outside the object, or whole with `regions`.
    options : AntsOptions
        Schedule.
    folder : Path
        Existing empty folder for all files of this run.
    runtime : Runtime
        Seed and number of threads.
    affine : ndarray, optional
        4x4, fixed to moving points, RAS mm: the start. Default: the centres of mass are aligned.
    lesion : Nifti1Image, optional
        Lesion mask on the moving grid. The similarity ignores voxels where it is not zero.
    regions : tuple of Nifti1Image
        Regions of the fixed and the moving image that are compared, uint8. None: all voxels.

    Raises
    ------
    ProgramError
        If ANTs fails or is killed.
    """
    folder = Path(folder).resolve()
    images = {"fixed": fixed, "moving": moving}
    if regions[0] is not None:
        images["fixed_region"] = Nifti1Image(np.float32(np.asanyarray(regions[0].dataobj)), fixed.affine)
    if lesion is not None or regions[1] is not None:
        compared = np.ones(moving.shape, np.float32)
        if regions[1] is not None:
            compared *= np.asanyarray(regions[1].dataobj) != 0
        if lesion is not None:
            compared *= np.asanyarray(lesion.dataobj) == 0
        images["moving_region"] = Nifti1Image(compared, moving.affine)
    request = {
        "options": asdict(options),
        "affine": None if affine is None else swap_ras_lps(affine).tolist(),
        "images": store_images(images, folder),
    }
    found = run_child(__name__, request, folder, runtime, name=f"ANTs {options.type_of_transform} registration")
    return AntsResult(
        affine=swap_ras_lps(np.array(found["affine"])),
        warp=Path(found["warp"]) if found["warp"] else None,
        inverse_warp=Path(found["inverse_warp"]) if found["inverse_warp"] else None,
        spent=found["spent"],
        peak_memory_mb=found["peak_memory_mb"],
    )


def _register(request: dict[str, Any], folder: Path) -> tuple[Spent, dict[str, Any]]:
    """Register in the child process."""
    import ants

    images = {
        role: ants.from_numpy(
            np.load(stored["path"]),
            origin=stored["origin"], spacing=stored["spacing"], direction=np.array(stored["direction"]),
        )
        for role, stored in request["images"].items()
    }  # fmt: skip
    initial = None
    if request["affine"] is not None:
        matrix = np.array(request["affine"])
        start = ants.create_ants_transform(
            transform_type="AffineTransform", dimension=3, matrix=matrix[:3, :3], offset=matrix[:3, 3]
        )
        initial = str(folder / "initial.mat")
        ants.write_transform(start, initial)

    options = request["options"]
    watch = Stopwatch()
    if options["search"] is not None:
        degrees, principal = options["search"]
        initial = ants.affine_initializer(
            images["fixed"], images["moving"],
            search_factor=degrees, radian_fraction=1.0, use_principal_axis=principal, local_search_iterations=20,
            txfn=str(folder / "initial.mat"),
        )  # fmt: skip
    ants.registration(
        images["fixed"], images["moving"],
        type_of_transform=options["type_of_transform"],
        initial_transform=initial,
        outprefix=str(folder / "out_"),
        mask=images.get("fixed_region"),
        moving_mask=images.get("moving_region"),
        syn_metric=options["syn_metric"],
        syn_sampling=options["syn_sampling"],
        reg_iterations=tuple(options["reg_iterations"]),
        flow_sigma=options["update_variance"],
        total_sigma=options["field_variance"],
    )  # fmt: skip
    spent = watch.read()

    transform = ants.read_transform(str(folder / "out_0GenericAffine.mat"))
    matrix = np.eye(4)
    matrix[:3, :3] = transform.parameters[:9].reshape(3, 3)
    centre = transform.fixed_parameters
    matrix[:3, 3] = transform.parameters[9:] + centre - matrix[:3, :3] @ centre
    warp, inverse_warp = folder / "out_1Warp.nii.gz", folder / "out_1InverseWarp.nii.gz"
    return spent, {
        "affine": matrix.tolist(),
        "warp": str(warp) if warp.exists() else None,
        "inverse_warp": str(inverse_warp) if inverse_warp.exists() else None,
    }


if __name__ == "__main__":
    answer(_register)
