"""Task: map of the volume change of a registration."""

from pathlib import Path

from fileformats.generic import File
from fileformats.medimage import NiftiGz
from pydra.compose import python

from nio_pydra.tasks.inputs import CODE_VERSION


@python.define(outputs=["jacobian"])
def MapVolumeChange(transform: File, reference: File, version: str = CODE_VERSION) -> NiftiGz:
    """Compute the Jacobian determinant of a transform, affine included.

    Parameters
    ----------
    transform : File
        ITK composite .h5 that maps points of the reference.
    reference : File
        Image that gives the grid.
    version : str
        Version of the code that this task calls.

    Returns
    -------
    jacobian : NiftiGz
        Determinant at every voxel of the reference.
    """
    from nio_pydra.engines.registration import map_volume_change

    return map_volume_change(Path(transform), Path(reference), Path("jacobian.nii.gz").absolute())
