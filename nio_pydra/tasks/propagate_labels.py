"""Task: labels resampled through a transform."""

from pathlib import Path

from fileformats.generic import File
from fileformats.medimage import NiftiGz
from pydra.compose import python

from nio_pydra.tasks.inputs import CODE_VERSION


@python.define(outputs=["propagated"])
def PropagateLabels(labels: File, reference: File, transform: File, version: str = CODE_VERSION) -> NiftiGz:
    """Resample a label image, by nearest neighbour.

    Parameters
    ----------
    labels : File
        Label image.
    reference : File
        Image that gives the grid of the result.
    transform : File
        ITK composite .h5 that maps points of the reference to points of the labels.
    version : str
        Version of the code that this task calls.

    Returns
    -------
    propagated : NiftiGz
        Label image on the reference's grid.
    """
    from nio_pydra.engines.registration import propagate_labels

    return propagate_labels(Path(labels), Path(reference), Path(transform), Path("propagated_labels.nii.gz").absolute())
