"""Task: results under their BIDS names in the output folder, and the page of the participant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fileformats.generic import File
from pydra.compose import python

from nio_pydra.bids.products import PRODUCTS
from nio_pydra.tasks.inputs import CODE_VERSION


def product_fields(field: Callable[..., Any]) -> dict[str, Any]:
    """Return a field for each row of the table of products. `field` is ``python.arg`` or ``workflow.out``."""
    return {
        product.name: field(type=File | None, default=None, help=product.help())
        if product.optional
        else field(type=File, help=product.help())
        for product in PRODUCTS
    }


@python.define(inputs=product_fields(python.arg), outputs=["files"])
def Sink(destination: dict, version: str = CODE_VERSION, **products: File | None) -> list[str]:
    """Copy the results of one scan into the derivative dataset. If it has figures, write its participant's page.

    Parameters
    ----------
    destination : dict
        Fields of nio_pydra.bids.products.Destination.
    version : str
        Version of the code that this task calls.
    products : File | None
        A file for each row of nio_pydra.bids.products.PRODUCTS.

    Returns
    -------
    files : list[str]
        Paths of the files written.
    """
    from nio_pydra.bids.inputs import scan_name
    from nio_pydra.bids.outputs import sink
    from nio_pydra.bids.products import Destination
    from nio_pydra.bids.records import forget_failure
    from nio_pydra.report.participant import write_participant_pages

    files = {name: None if file is None else Path(file) for name, file in products.items()}
    to = Destination(**destination)
    written = [str(path) for path in sink(files, to)]
    forget_failure(Path(to.out_dir), scan_name(to.entities), to.space, to.desc)  # of an earlier run
    if any(files[product.name] for product in PRODUCTS if product.figure):
        write_participant_pages(Path(to.out_dir), to.kind, [f"sub-{to.entities['subject']}"], alone=True)
    return written
