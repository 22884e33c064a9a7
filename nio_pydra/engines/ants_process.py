"""One antspyx registration in a process of its own.

ITK reads its random seed and its number of threads from the environment once, before its first call, and
keeps them; only a fresh process can be given them reliably. It also gives the peak memory of the registration
alone, and a crash inside ITK ends the child, not the caller.

Images travel as arrays with their own geometry instead of NIfTI files, because ITK and nibabel disagree about
which of a header's two affines counts.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from nio_pydra.engines.memory import peak_memory_mb
from nio_pydra.engines.stopwatch import Spent, Stopwatch
from nio_pydra.errors import ProgramError
from nio_pydra.spatial.lps import itk_geometry, swap_ras_lps
from nio_pydra.system.processes import last_lines, run_program

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Runtime

__all__ = ["AntsError", "AntsOptions", "AntsResult", "run_ants"]


class AntsError(ProgramError):
    """The ANTs process failed."""


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
    affine : numpy.ndarray, shape (4, 4)
        Fixed to moving, RAS mm.
    warp, inverse_warp : pathlib.Path or None
        ITK displacement fields (LPS mm) on the fixed grid; None after a linear registration.
    spent : Spent
        By `ants.registration` alone: no start-up, no reading of the images. antspyx writes its warps inside that
        call, so a few seconds of compression are in it.
    peak_memory_mb : float
        Largest resident memory of the child, MiB.
    """

    affine: np.ndarray
    warp: Path | None
    inverse_warp: Path | None
    spent: Spent
    peak_memory_mb: float


def run_ants(
    fixed: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    options: AntsOptions,
    folder: Path,
    runtime: Runtime,
    *,
    affine: np.ndarray | None = None,
    lesion: nib.Nifti1Image | None = None,
    threads: int | None = None,
) -> AntsResult:
    """Run one `ants.registration` in a child process.

    Parameters
    ----------
    fixed, moving : nibabel.Nifti1Image, shape (X, Y, Z)
        As they are compared: zero outside the object.
    options : AntsOptions
    folder : pathlib.Path
        An existing, empty folder that takes all files of this run, the child's temporary ones too.
    runtime : Runtime
        Gives the seed and the number of threads.
    affine : numpy.ndarray, shape (4, 4), optional
        Start here, fixed to moving, RAS mm; None starts where the centres of mass meet.
    lesion : nibabel.Nifti1Image, optional
        On the moving grid; where it is not zero, nothing counts for the similarity.
    threads : int, optional
        Overrides the number of `runtime`.

    Returns
    -------
    AntsResult

    Raises
    ------
    AntsError
        If the child fails or is killed.
    """
    folder = Path(folder).resolve()
    request: dict[str, Any] = {"options": asdict(options)}
    sound = None if lesion is None else nib.Nifti1Image(np.float32(np.asanyarray(lesion.dataobj) == 0), lesion.affine)
    for role, image in (("fixed", fixed), ("moving", moving), ("sound", sound)):
        request[role] = None if image is None else _write_array(image, folder / f"{role}.npy")
    request["affine"] = None if affine is None else swap_ras_lps(affine).tolist()
    (folder / "request.json").write_text(json.dumps(request))

    environment = os.environ | {
        # ANTs takes seed 0 to mean "use the clock".
        "ANTS_RANDOM_SEED": str(runtime.seed + 1),
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads or runtime.thread_count),
        "TMPDIR": str(folder),
        # The child finds this package the way the parent did, installed or not.
        "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path),
    }
    what, log = f"ANTs {options.type_of_transform} registration", folder / "log.txt"
    try:
        run_program(
            [sys.executable, "-m", "nio_pydra.engines.ants_process", folder / "request.json"],
            name=what, folder=folder, log=log, environment=environment,
        )  # fmt: skip
    except ProgramError as error:
        raise AntsError(str(error)) from None
    answer = folder / "result.json"
    if not answer.exists():
        raise AntsError(f"{what} left no result. The end of its output:\n{last_lines(log)}")
    found = json.loads(answer.read_text())
    return AntsResult(
        affine=swap_ras_lps(np.array(found["affine"])),
        warp=Path(found["warp"]) if found["warp"] else None,
        inverse_warp=Path(found["inverse_warp"]) if found["inverse_warp"] else None,
        spent=Spent(**found["spent"]),
        peak_memory_mb=found["peak_memory_mb"],
    )


def _write_array(image: nib.Nifti1Image, path: Path) -> dict[str, Any]:
    """Store the voxels as .npy; return the path with the ITK (LPS) geometry: spacing, origin, direction."""
    np.save(path, np.ascontiguousarray(image.get_fdata(dtype=np.float32, caching="unchanged")))
    spacing, origin, direction = itk_geometry(image.affine)
    return {
        "path": str(path),
        "spacing": spacing.tolist(),
        "origin": origin.tolist(),
        "direction": direction.tolist(),
    }


def _main(request_path: Path) -> None:
    """Run in the child: read the request, register, write result.json beside the request."""
    import ants

    request = json.loads(request_path.read_text())
    folder = request_path.parent

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
    result = {
        "affine": matrix.tolist(),
        "warp": str(warp) if warp.exists() else None,
        "inverse_warp": str(inverse_warp) if inverse_warp.exists() else None,
        "spent": asdict(spent),
        "peak_memory_mb": peak_memory_mb(),
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
