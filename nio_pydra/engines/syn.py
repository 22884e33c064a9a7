"""Engine ``syn``: ANTs symmetric normalization (Avants et al. 2008), the classical baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import nibabel as nib
import numpy as np

from nio_pydra.engines.ants_process import AntsOptions, run_ants
from nio_pydra.engines.contract import Deformation, Engine, Pair, Runtime
from nio_pydra.engines.references import AVANTS_2008
from nio_pydra.spatial.lps import field_from_itk
from nio_pydra.spatial.transforms import DisplacementField
from nio_pydra.system.scratch import scratch_folder

__all__ = ["SYN", "SynSettings"]


@dataclass(frozen=True)
class SynSettings:
    """Settings of the deformable stage of ANTs.

    Attributes
    ----------
    metric : str
        "mattes" (mutual information) or "CC" (local cross-correlation).
    sampling : int
        Number of histogram bins of "mattes", or window radius of "CC" in voxels.
    iterations : tuple of int
        Iterations per level, coarse to fine. The last level has full resolution.
    update_variance : float
        Variance of the Gaussian that smooths each update of the field, in voxels squared of the level. The default is
        that of antspyx.
    field_variance : float
        The same of the whole field, after each update: the main control of smoothness. 0, the default of antspyx,
        leaves the field as it is.

    Raises
    ------
    ValueError
        If a setting is unknown, or a number cannot be used, or all iterations are zero.
    """

    metric: str = "mattes"
    sampling: int = 32
    iterations: tuple[int, ...] = (40, 20, 0)
    update_variance: float = 3.0
    field_variance: float = 0.0

    def __post_init__(self) -> None:
        if self.metric not in ("mattes", "CC"):
            raise ValueError(f"metric is {self.metric!r}: expected 'mattes' or 'CC'")
        if self.sampling < 1:
            raise ValueError(f"sampling is {self.sampling}: expected at least 1")
        if min(self.iterations, default=0) < 0 or sum(self.iterations) == 0:
            raise ValueError(f"iterations is {self.iterations}: expected counts, not all zero")
        for name in ("update_variance", "field_variance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 0 or more")


class SynEngine(Engine):
    """SyN, run by antspyx."""

    what = "symmetric normalization by ANTs, the classical baseline"
    references = (AVANTS_2008,)
    package = "antspyx"
    presets = MappingProxyType(
        {
            "fast": SynSettings(),
            # The fixed schedule of antspyx's "SyNCC" takes many hours.
            "precise": SynSettings(metric="CC", sampling=4, iterations=(100, 70, 50, 20)),
        }
    )

    def processor_minutes(self, settings: SynSettings) -> float:
        """Predict the processor time: thrice that in docs/results/speed.md. Each level has an eighth of the voxels."""
        whole = sum(count / 8**level for level, count in enumerate(reversed(settings.iterations)))
        return 3 * whole * (130 if settings.metric == "CC" else 12) / 60

    def run(self, pair: Pair, settings: SynSettings, runtime: Runtime) -> Deformation:
        """Register a pair by SyN, with its affine as the start.

        antspyx's ``SyNOnly`` runs the same stage as its ``SyN`` after the affine. The forward field is applied before
        the affine, and the inverse field after the affine's inverse. So both lie on the fixed grid, in the fixed
        image's world, as :class:`Deformation` requires.

        Parameters
        ----------
        pair : Pair
            The images are zero outside their masks, or their masks are those of the similarity, as the profile wants.
            The similarity ignores the lesion.
        settings : SynSettings
            Schedule of the deformable stage.
        runtime : Runtime
            Threads and seed. ANTs gives the same bits in every run on one thread only.

        Returns
        -------
        Deformation
            Both fields on the fixed grid. The details hold ``peak_memory_mb``.

        Raises
        ------
        ProgramError
            If the ANTs process fails.
        """
        options = AntsOptions(
            "SyNOnly",
            settings.metric,
            settings.sampling,
            settings.iterations,
            update_variance=settings.update_variance,
            field_variance=settings.field_variance,
        )
        images = pair.fixed_object, pair.moving_object
        with scratch_folder(runtime.scratch) as folder:
            result = run_ants(
                *images, options, folder, runtime,
                affine=pair.affine, lesion=pair.lesion_mask, regions=(pair.fixed_region, pair.moving_region),
            )  # fmt: skip
            if result.warp is None or result.inverse_warp is None:
                raise RuntimeError("antspyx wrote no deformation after SyNOnly: is its version supported?")
            forward = _read_warp(result.warp, pair.fixed)
            inverse = _read_warp(result.inverse_warp, pair.fixed)
        return Deformation(forward, inverse, result.spent, {"peak_memory_mb": result.peak_memory_mb})


SYN = SynEngine()


def _read_warp(path: Path, fixed: nib.Nifti1Image) -> DisplacementField:
    """Read an ITK displacement file ``(X, Y, Z, 1, 3)``, LPS mm, on the fixed grid.

    The affine of the fixed image is used, because ITK's quaternions have rounded the one in the file.
    """
    vectors = np.asarray(nib.Nifti1Image.from_filename(path).dataobj, dtype=np.float32)[:, :, :, 0, :]
    if vectors.shape[:3] != fixed.shape:
        raise RuntimeError(f"antspyx wrote a field of shape {vectors.shape[:3]} for the grid {fixed.shape}")
    return field_from_itk(vectors, fixed.affine)
