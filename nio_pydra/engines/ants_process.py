"""One registration by antspyx, in a process of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.engines.child import answer, run_child, store_image
from nio_pydra.engines.stopwatch import Spent, Stopwatch
from nio_pydra.spatial.lps import swap_ras_lps

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Runtime

__all__ = ["AntsOptions", "AntsResult", "run_ants"]


@dataclass(frozen=True)
class AntsOptions:
    """The arguments of `ants.registration` that this project sets.

    Attributes
    ----------
    type_of_transform : str
        antspyx's name of the schedule: ``"Affine"`` or ``"SyNOnly"``.
    syn_metric : str
        Similarity of the deformable stage: ``"mattes"`` or ``"CC"``.
    syn_sampling : int
        Histogram bins of ``mattes``, window radius in voxels of ``CC``.
    reg_iterations : tuple of int
        Iterations of the deformable stage per level, coarse to fine; each level doubles the resolution, up to
        full resolution at the last.
    search : tuple of float and bool, or None
        Look for the start of an affine among turns in all directions: degrees between two of them, and whether to
        begin with the principal axes aligned.
    """

    type_of_transform: str
    syn_metric: str = "mattes"
    syn_sampling: int = 32
    reg_iterations: tuple[int, ...] = (40, 20, 0)
    search: tuple[float, bool] | None = None


@dataclass(frozen=True)
class AntsResult:
    """What one registration left in its folder.

    Attributes
    ----------
    affine : ndarray
        ``(4, 4)``, fixed to moving points, RAS mm.
    warp, inverse_warp : Path or None
        ITK displacement fields (LPS mm) on the fixed grid; None after a linear registration.
    spent : Spent
        By `ants.registration` alone: no start-up, no reading of the images. antspyx writes its warps inside that
        call, so a few seconds of compression are in it.
    peak_memory_mb : float
        Largest resident memory of the child, MiB.
    """

    affine: NDArray[np.float64]
    warp: Path | None
    inverse_warp: Path | None
    spent: Spent
    peak_memory_mb: float


def run_ants(
    fixed: Nifti1Image,
    moving: Nifti1Image,
    options: AntsOptions,
    folder: Path,
    runtime: Runtime,
    *,
    affine: NDArray[np.floating] | None = None,
    lesion: Nifti1Image | None = None,
    threads: int | None = None,
) -> AntsResult:
    """Run one `ants.registration`.

    Parameters
    ----------
    fixed, moving : Nifti1Image
        ``(X, Y, Z)``, as they are compared: zero outside the object.
    options : AntsOptions
        Schedule.
    folder : Path
        An existing, empty folder that takes all files of this run.
    runtime : Runtime
        Gives the seed and the number of threads.
    affine : ndarray, optional
        ``(4, 4)``, fixed to moving points, RAS mm: the start. None starts where the centres of mass meet.
    lesion : Nifti1Image, optional
        On the moving grid. Where it is not zero, nothing counts for the similarity.
    threads : int, optional
        Overrides the number of `runtime`.

    Raises
    ------
    ProgramError
        If ANTs fails or is killed.
    """
    folder = Path(folder).resolve()
    sound = None if lesion is None else Nifti1Image(np.float32(np.asanyarray(lesion.dataobj) == 0), lesion.affine)
    images = {"fixed": fixed, "moving": moving, "sound": sound}
    request: dict[str, Any] = {
        "options": asdict(options),
        "affine": None if affine is None else swap_ras_lps(affine).tolist(),
        **{
            role: None if image is None else store_image(image, folder / f"{role}.npy")
            for role, image in images.items()
        },
    }
    name = f"ANTs {options.type_of_transform} registration"
    found = run_child(__name__, request, folder, runtime, name=name, threads=threads)
    return AntsResult(
        affine=swap_ras_lps(np.array(found["affine"])),
        warp=Path(found["warp"]) if found["warp"] else None,
        inverse_warp=Path(found["inverse_warp"]) if found["inverse_warp"] else None,
        spent=found["spent"],
        peak_memory_mb=found["peak_memory_mb"],
    )


def _register(request: dict[str, Any], folder: Path) -> tuple[Spent, dict[str, Any]]:
    """Do the work, in the child."""
    import ants

    def read(role: str) -> Any:
        entry = request[role]
        if entry is None:
            return None
        return ants.from_numpy(
            np.load(entry["path"]),
            origin=entry["origin"], spacing=entry["spacing"], direction=np.array(entry["direction"]),
        )  # fmt: skip

    fixed, moving, sound = read("fixed"), read("moving"), read("sound")
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
            fixed, moving,
            search_factor=degrees, radian_fraction=1.0, use_principal_axis=principal, local_search_iterations=20,
            txfn=str(folder / "initial.mat"),
        )  # fmt: skip
    ants.registration(
        fixed, moving,
        type_of_transform=options["type_of_transform"],
        initial_transform=initial,
        outprefix=str(folder / "out_"),
        moving_mask=sound,
        syn_metric=options["syn_metric"],
        syn_sampling=options["syn_sampling"],
        reg_iterations=tuple(options["reg_iterations"]),
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
