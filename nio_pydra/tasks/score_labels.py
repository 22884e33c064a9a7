"""Task: overlap of propagated labels with the fixed image's labels."""

from pathlib import Path

from fileformats.application import Json
from fileformats.generic import File
from pydra.compose import python

from nio_pydra.tasks.inputs import CODE_VERSION


@python.define(outputs=["record"])
def ScoreLabels(
    record: File, fixed_labels: File, propagated_labels: File, moving_labels: File, version: str = CODE_VERSION
) -> Json:
    """Add the Dice overlap to a registration's record.

    Parameters
    ----------
    record : File
        JSON of the registration.
    fixed_labels : File
        Labels of the fixed image.
    propagated_labels : File
        Labels of the moving image on the fixed grid.
    moving_labels : File
        Labels of the moving image before they were propagated.
    version : str
        Version of the code that this task calls.

    Returns
    -------
    record : Json
        The record with `dice`.
    """
    from nio_pydra.engines.registration import score

    out = Path("record.json").absolute()
    score(Path(record), Path(fixed_labels), Path(propagated_labels), out, Path(moving_labels))
    return out
