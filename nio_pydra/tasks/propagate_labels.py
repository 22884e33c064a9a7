"""Task: labels carried through a transform."""

from pathlib import Path

from fileformats.generic import File
from pydra.compose import python

from nio_pydra import __version__


@python.define(outputs=["propagated"])
def PropagateLabels(labels: File, reference: File, transform: File, version: str = __version__) -> File:
    """Resample a label image, nearest neighbour.

    Parameters
    ----------
    labels : File
        Label image.
    reference : File
        Image whose grid the result has.
    transform : File
        ITK composite .h5 that maps points of the reference to points of the labels.
    version : str
        Version of the code that this task calls.

    Returns
    -------
    propagated : File
        Label image on the reference's grid.
    """
    from nio_pydra.engines.registration import propagate_labels

    return propagate_labels(Path(labels), Path(reference), Path(transform), Path("propagated_labels.nii.gz").absolute())
