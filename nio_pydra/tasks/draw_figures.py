"""Task: figures of one registration."""

import logging
from pathlib import Path

from fileformats.generic import File
from pydra.compose import python

from nio_pydra.bids.products import PRODUCTS
from nio_pydra.tasks.inputs import CODE_VERSION

FIGURES = tuple(product for product in PRODUCTS if product.figure)


@python.define(outputs={product.name: python.out(type=File | None, help=product.help()) for product in FIGURES})
def DrawFigures(
    atlas: File,
    atlas_mask: File,
    scan: File,
    mask: File,
    forward_xfm: File,
    inverse_xfm: File,
    labels_of_atlas: File | None = None,
    labels: File | None = None,
    version: str = CODE_VERSION,
):
    """Draw the figures of a registration, for the participant's page.

    Parameters
    ----------
    atlas : File
        Atlas image.
    atlas_mask : File
        Mask of the object on the atlas's grid.
    scan : File
        The scan.
    mask : File
        Mask of the object on the scan's grid.
    forward_xfm : File
        ITK composite .h5, atlas to scan points.
    inverse_xfm : File
        ITK composite .h5, scan to atlas points.
    labels_of_atlas : File | None
        Labels of the atlas.
    labels : File | None
        Labels of the scan in the atlas's space.
    version : str
        Version of the code that this task calls.

    Returns
    -------
    figures : File | None
        An SVG for each figure in nio_pydra.bids.products.PRODUCTS, in that order. None for all if they cannot be drawn:
        that is logged, and the registration stays.
    """
    from nio_pydra.report.figures import Drawn, draw_figures

    files = (atlas, atlas_mask, scan, mask, forward_xfm, inverse_xfm, labels_of_atlas, labels)
    try:
        drawn = draw_figures(Drawn(*(None if file is None else Path(file) for file in files)), Path.cwd())
    except Exception:
        logging.getLogger("nio_pydra").exception("%s: its figures could not be drawn", Path(scan).name)
        drawn = {}
    return tuple(drawn.get(product.name.removesuffix("_figure")) for product in FIGURES)
