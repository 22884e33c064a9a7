"""Engine ``niftyreg``: free-form deformation by B-splines, by the program reg_f3d of NiftyReg (Modat et al. 2010)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from types import MappingProxyType
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image

from nio_pydra.engines.child import answer, run_child
from nio_pydra.engines.contract import Deformation, Engine, Pair, Runtime
from nio_pydra.engines.references import MODAT_2010
from nio_pydra.engines.stopwatch import Spent, Stopwatch
from nio_pydra.errors import InputError
from nio_pydra.spatial.transforms import DisplacementField, apply_affine, voxel_centres
from nio_pydra.system.scratch import scratch_folder

__all__ = ["NIFTYREG", "NiftyRegSettings"]

PROGRAMS = ("reg_f3d", "reg_transform")
HOW_TO_GET_IT = (
    "name its folder in the environment variable NIFTYREGDIR, or put the folder of its programs on PATH, or build it "
    "by `CMAKE_POLICY_VERSION_MINIMUM=3.5 pip install niftyreg`."
)


@dataclass(frozen=True)
class NiftyRegSettings:
    """Options of reg_f3d; every default is that of NiftyReg 1.5.

    Attributes
    ----------
    similarity : {"nmi", "lncc"}
        Normalised mutual information of 64 bins, or local normalised cross-correlation.
    lncc_sigma_voxels : float
        Standard deviation of the Gaussian windows of ``lncc``, in voxels of the level.
    spacing_voxels : float
        Distance between control points, in voxels of the fixed image at full resolution.
    bending_energy : float
        Weight of the squared second derivatives of the deformation, in [0, 1): the main control of smoothness. The
        similarity has what is left of 1.
    linear_energy : float
        Weight of the squared first derivatives that remain without rotations, in [0, 1).
    log_jacobian : float
        Weight of the squared logarithm of the Jacobian determinant, in [0, 1).
    levels : int
        Levels of the pyramid; the last is full resolution.
    iterations : int
        Largest number at the last level; each coarser level may take twice as many as the next finer one.
    velocity : bool
        Deform along a stationary velocity field, symmetrically in both images: diffeomorphic, and much slower.
    """

    similarity: str = "nmi"
    lncc_sigma_voxels: float = 5.0
    spacing_voxels: float = 5.0
    bending_energy: float = 0.001
    linear_energy: float = 0.01
    log_jacobian: float = 0.0
    levels: int = 3
    iterations: int = 150
    velocity: bool = False

    def __post_init__(self) -> None:
        if self.similarity not in ("nmi", "lncc"):
            raise ValueError(f"similarity is {self.similarity!r}: expected 'nmi' or 'lncc'")
        if not self.lncc_sigma_voxels > 0:
            raise ValueError(f"lncc_sigma_voxels is {self.lncc_sigma_voxels}: expected more than 0")
        if not self.spacing_voxels >= 1:
            raise ValueError(f"spacing_voxels is {self.spacing_voxels}: expected at least 1")
        weights = (self.bending_energy, self.linear_energy, self.log_jacobian)
        if not (min(weights) >= 0 and sum(weights) < 1):
            raise ValueError(
                f"bending_energy, linear_energy and log_jacobian are {weights}: expected at least 0, and less than 1 "
                "together"
            )
        if self.levels < 1 or self.iterations < 1:
            raise ValueError(f"levels is {self.levels} and iterations {self.iterations}: expected at least 1")

    def options(self) -> list[str]:
        """Return them as reg_f3d takes them; it counts in voxels what is negative."""
        options = {
            "-sx": -self.spacing_voxels,
            "-be": self.bending_energy,
            "-le": self.linear_energy,
            "-jl": self.log_jacobian,
            "-ln": self.levels,
            "-maxit": self.iterations,
        }
        if self.similarity == "lncc":
            options["--lncc"] = -self.lncc_sigma_voxels
        written = [text for name, value in options.items() for text in (name, str(value))]
        return [*written, *(["-vel"] if self.velocity else [])]


class NiftyRegEngine(Engine):
    """reg_f3d, and reg_transform for the dense field."""

    what = "free-form deformation by B-splines and mutual information, by NiftyReg's reg_f3d"
    references = (MODAT_2010,)
    presets = MappingProxyType({"default": NiftyRegSettings(), "velocity": NiftyRegSettings(velocity=True)})

    def run(self, pair: Pair, settings: NiftyRegSettings, runtime: Runtime) -> Deformation:
        """Register a pair, starting from its affine.

        reg_f3d's deformation goes from fixed to moving points, the affine included. The affine is taken out of it
        again, so that what is left lies on the fixed grid, before the affine.

        Parameters
        ----------
        pair : Pair
            Its masks blank everything outside, or the fixed mask is that of the similarity, as the profile wants. The
            voxels of its lesion are NaN, which NiftyReg leaves out of the similarity wherever the deformation carries
            them; its own mask options would hold them on the fixed grid.
        settings : NiftyRegSettings
            Options of reg_f3d.
        runtime : Runtime
            Threads. Nothing is random; sums over several threads may round differently.

        Returns
        -------
        Deformation
            Forward field on the fixed grid; no inverse. Its details hold ``peak_memory_mb`` and the ``program``. The
            time is that of both programs, the reading and writing of uncompressed files included.

        Raises
        ------
        InputError
            If a mask is empty, or NiftyReg is missing.
        ProgramError
            If NiftyReg fails, or its deformation is not finite.
        """
        programs = _folder()
        if programs is None:
            raise InputError(f"The engine niftyreg cannot be used here: {self.available()}")
        moving = pair.moving_object
        if pair.lesion_mask is not None:
            lesion = np.asanyarray(pair.lesion_mask.dataobj) != 0
            moving = Nifti1Image(
                np.where(lesion, np.float32(np.nan), moving.get_fdata(dtype=np.float32)), moving.affine
            )
        with scratch_folder(runtime.scratch) as folder:
            images = {"fixed": pair.fixed_object, "moving": moving}
            if pair.fixed_region is not None:
                images["region"] = pair.fixed_region
            for name, image in images.items():
                image.to_filename(folder / f"{name}.nii")
            request = {
                "programs": str(programs),
                "options": settings.options(),
                "threads": runtime.thread_count,
                "affine": np.asarray(pair.affine).tolist(),
                "grid": np.asarray(pair.fixed.affine).tolist(),
            }
            found = run_child(__name__, request, folder, runtime, name="NiftyReg")
            forward = DisplacementField(np.load(found["warp"]), pair.fixed.affine)
        details = {"peak_memory_mb": found["programs_peak_memory_mb"], "program": self.fingerprint(settings)}
        return Deformation(forward, None, found["spent"], details)

    def fingerprint(self, settings: Any) -> str:
        """Return the version of NiftyReg."""
        programs = _folder()
        return f"niftyreg-{programs and _version(programs)}"

    def available(self) -> str | None:
        """Say how to get NiftyReg where it is missing."""
        programs = _folder()
        if programs is None:
            named = os.environ.get("NIFTYREGDIR")
            where = f"NIFTYREGDIR is {named}, which holds" if named else "this machine has"
            return f"{where} no {' and '.join(PROGRAMS)} of NiftyReg; {HOW_TO_GET_IT}"
        if _version(programs) is None:
            return f"{programs / PROGRAMS[0]} does not run on this machine; {HOW_TO_GET_IT}"
        return None


NIFTYREG = NiftyRegEngine()


def _folder() -> Path | None:
    """Return the folder of NiftyReg's programs: of NIFTYREGDIR if that is set, else on PATH, else of the package."""
    folders: list[Path] = []
    if named := os.environ.get("NIFTYREGDIR"):
        folders += [Path(named).absolute() / "bin", Path(named).absolute()]
    else:
        if program := which(PROGRAMS[0]):
            folders.append(Path(program).absolute().parent)
        if (package := find_spec("niftyreg")) and package.origin:
            folders.append(Path(package.origin).parent / "bin")
    complete = (folder for folder in folders if all(os.access(folder / program, os.X_OK) for program in PROGRAMS))
    return next(complete, None)


def _environment(programs: Path) -> dict[str, str]:
    """Return the environment to run the programs in: their libraries may lie in a folder beside theirs."""
    libraries = [str(programs.parent / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}


@cache
def _version(programs: Path) -> str | None:
    """Return what reg_f3d calls its version; None where it does not run."""
    try:
        done = subprocess.run(
            [programs / PROGRAMS[0], "--version"], env=_environment(programs), timeout=60,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _register(request: dict[str, Any], folder: Path) -> tuple[Spent, dict[str, Any]]:
    """Do the work, in the child."""
    programs, threads = Path(request["programs"]), ["-omp", str(request["threads"])]
    affine, grid = np.array(request["affine"]), np.array(request["grid"])
    np.savetxt(folder / "affine.txt", affine, fmt="%.12g")  # fixed to moving points, RAS mm: as here

    def run(program: str, arguments: Sequence[str], result: str) -> None:
        command = [str(programs / program), *arguments, *threads]
        status = subprocess.run(command, cwd=folder, env=_environment(programs), check=False).returncode
        if status or not (folder / result).exists():
            ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            sys.exit(f"{program} {ended}" + (" and wrote no result" if not status else ""))

    watch = Stopwatch()
    images = ["-ref", "fixed.nii", "-flo", "moving.nii", "-aff", "affine.txt"]
    if (folder / "region.nii").exists():
        images += ["-rmask", "region.nii"]
    run("reg_f3d", [*images, *request["options"], "-cpp", "grid.nii", "-res", "warped.nii"], "grid.nii")
    run("reg_transform", ["-ref", "fixed.nii", "-def", "grid.nii", "field.nii"], "field.nii")
    positions = np.asarray(Nifti1Image.from_filename(folder / "field.nii").dataobj)[:, :, :, 0]
    shape, back = positions.shape[:3], np.linalg.inv(affine)
    warp = np.empty((3, *shape), np.float32)
    slab = shape[1] * shape[2]
    for x in range(shape[0]):
        points = voxel_centres(shape, grid, x * slab, (x + 1) * slab)
        vectors = apply_affine(back, positions[x].reshape(slab, 3).astype(np.float64)) - points
        warp[:, x] = vectors.T.reshape(3, *shape[1:])
    if not np.isfinite(warp).all():
        sys.exit("The deformation of reg_f3d holds numbers that are NaN or infinite")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = watch.read() + Spent(0, usage.ru_utime + usage.ru_stime)
    np.save(folder / "warp.npy", warp)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return spent, {"warp": str(folder / "warp.npy"), "programs_peak_memory_mb": usage.ru_maxrss / unit}


if __name__ == "__main__":
    answer(_register)
