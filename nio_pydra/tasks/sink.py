"""Task: results under their BIDS names in the output folder."""

from pathlib import Path

from fileformats.generic import File
from pydra.compose import python


@python.define(outputs=["files"])
def Sink(
    forward_xfm: File,
    inverse_xfm: File,
    warped: File,
    record: File,
    mask: File,
    destination: dict,
    labels: File | None = None,
    atlas_labels: File | None = None,
) -> list[str]:
    """Copy the results of one scan into the derivative dataset.

    Parameters
    ----------
    forward_xfm : File
        ITK composite, atlas to T1w points.
    inverse_xfm : File
        Its inverse.
    warped : File
        T1w image in the atlas's space.
    record : File
        JSON.
    mask : File
        Brain mask on the T1w grid.
    destination : dict
        Fields of nio_pydra.bids.outputs.Destination.
    labels : File | None
        The scan's labels in the atlas's space.
    atlas_labels : File | None
        The atlas's labels in the scan's space.

    Returns
    -------
    files : list[str]
        The paths written.
    """
    from nio_pydra.bids.outputs import Destination, Products, sink

    products = Products(
        forward_xfm=Path(forward_xfm),
        inverse_xfm=Path(inverse_xfm),
        warped=Path(warped),
        record=Path(record),
        mask=Path(mask),
        labels=None if labels is None else Path(labels),
        atlas_labels=None if atlas_labels is None else Path(atlas_labels),
    )
    return [str(path) for path in sink(products, Destination(**destination))]
