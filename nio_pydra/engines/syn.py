"""Engine ``syn``: ANTs symmetric normalization (Avants et al. 2008), the classical baseline."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np

from nio_pydra.engines.ants_process import AntsOptions, run_ants
from nio_pydra.engines.contract import Deformation, Engine, Pair, Runtime
from nio_pydra.spatial.lps import field_from_itk
from nio_pydra.spatial.transforms import DisplacementField
from nio_pydra.system.scratch import scratch_folder

__all__ = ["SYN", "SynSettings"]


@dataclass(frozen=True)
class SynSettings:
    """What the deformable stage of ANTs does.

    Attributes
    ----------
    metric : str
        ``"mattes"`` (mutual information) or ``"CC"`` (local cross-correlation).
    sampling : int
        Histogram bins of ``mattes``, window radius in voxels of ``CC``.
    iterations : tuple of int
        Per level, coarse to fine; the last level is full resolution.

    Raises
    ------
    ValueError
        If a setting is unknown or not positive, or all iterations are zero.
    """

    metric: str = "mattes"
    sampling: int = 32
    iterations: tuple[int, ...] = (40, 20, 0)

    def __post_init__(self) -> None:
        if self.metric not in ("mattes", "CC"):
            raise ValueError(f"metric is {self.metric!r}: expected 'mattes' or 'CC'")
        if self.sampling < 1:
            raise ValueError(f"sampling is {self.sampling}: expected at least 1")
        if min(self.iterations, default=0) < 0 or sum(self.iterations) == 0:
            raise ValueError(f"iterations is {self.iterations}: expected counts, not all zero")


class SynEngine(Engine):
    """SyN as antspyx runs it."""

    what = "symmetric normalization by ANTs, the classical baseline"
    citation = "Avants et al. 2008, Medical Image Analysis 12, doi:10.1016/j.media.2007.06.004"
    presets = MappingProxyType(
        {
            "fast": SynSettings(),
            # Not antspyx's "SyNCC", whose hard-coded schedule takes many hours.
            "precise": SynSettings(metric="CC", sampling=4, iterations=(100, 70, 50, 20)),
        }
    )

    def run(self, pair: Pair, settings: SynSettings, runtime: Runtime) -> Deformation:
        """Register a pair by SyN, starting from and keeping the pair's affine.

        antspyx's ``SyNOnly`` runs the very stage that its ``SyN`` runs after its own affine. Its forward field is
        applied before the affine and its inverse field after the affine's inverse. So both live on the fixed grid, in
        the fixed image's world, as the contract asks.

        Parameters
        ----------
        pair : Pair
            Its masks blank everything outside; its lesion mask takes the lesion out of the similarity.
        settings : SynSettings
            Schedule of the deformable stage.
        runtime : Runtime
            Threads and seed. ANTs promises the same bits run after run on one thread only.

        Returns
        -------
        Deformation
            Its details hold ``peak_memory_mb``.

        Raises
        ------
        ProgramError
            If the ANTs process fails.
        """
        options = AntsOptions("SyNOnly", settings.metric, settings.sampling, settings.iterations)
        fixed = pair.fixed_object
        moving = pair.moving_object
        with scratch_folder(runtime.scratch) as folder:
            result = run_ants(
                fixed, moving, options, folder, runtime,
                affine=pair.affine, lesion=pair.lesion_mask,
            )  # fmt: skip
            if result.warp is None or result.inverse_warp is None:
                raise RuntimeError("antspyx wrote no deformation after SyNOnly: is its version supported?")
            forward = _read_warp(result.warp, pair.fixed)
            inverse = _read_warp(result.inverse_warp, pair.fixed)
        return Deformation(forward, inverse, result.spent, {"peak_memory_mb": result.peak_memory_mb})

    def fingerprint(self, settings: Any) -> str:
        """Return the version of antspyx."""
        return f"antspyx-{version('antspyx')}"


SYN = SynEngine()


def _read_warp(path: Path, fixed: nib.Nifti1Image) -> DisplacementField:
    """Turn an ITK displacement file (X, Y, Z, 1, 3), LPS mm, on the fixed grid, into a RAS field.

    The fixed image's own affine is used: the one in the file went through ITK's quaternions.
    """
    vectors = np.asarray(nib.Nifti1Image.from_filename(path).dataobj, dtype=np.float32)[:, :, :, 0, :]
    if vectors.shape[:3] != fixed.shape:
        raise RuntimeError(f"antspyx wrote a field of shape {vectors.shape[:3]} for the grid {fixed.shape}")
    return field_from_itk(vectors, fixed.affine)
