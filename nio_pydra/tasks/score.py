"""Task: overlap of propagated labels with the atlas's own."""

from pathlib import Path

from fileformats.generic import File
from pydra.compose import python

from nio_pydra import __version__


@python.define(outputs=["record"])
def Score(
    record: File, fixed_labels: File, propagated_labels: File, moving_labels: File, version: str = __version__
) -> File:
    """Add the Dice overlap to a registration's record.

    Parameters
    ----------
    record : File
        JSON of the registration.
    fixed_labels : File
        The atlas's labels.
    moving_labels : File
        The subject's labels before that.
    propagated_labels : File
        The subject's labels in the atlas's space.
    version : str
        Version of the code that this task calls.

    Returns
    -------
    record : File
        JSON with `dice`.
    """
    from nio_pydra.engines.registration import score

    out = Path("record.json").absolute()
    score(Path(record), Path(fixed_labels), Path(propagated_labels), out, Path(moving_labels))
    return out
