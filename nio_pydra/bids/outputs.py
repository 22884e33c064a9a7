"""Results of one scan as BIDS derivatives: names, sidecars, and the copy into the output folder."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from nio_pydra.bids.products import PRODUCTS, Destination, Product
from nio_pydra.system.files import atomic_path
from nio_pydra.system.files import discard_leftovers as discard_dead_files

__all__ = ["discard_leftovers", "engine_desc", "output_path", "sink"]

# pybids's own patterns lose `atlas` and know no `xfm`.
PATTERN = (
    "sub-{subject}[/ses-{session}]/{datatype}/sub-{subject}[_ses-{session}]"
    "[_acq-{acquisition}][_ce-{ceagent}][_rec-{reconstruction}][_run-{run}]"
    "[_from-{from}][_to-{to}][_mode-{mode}][_space-{space}][_cohort-{cohort}][_res-{res}][_atlas-{atlas}][_desc-{desc}]"
    "_{suffix}{extension}"
)


def engine_desc(engine: str) -> str:
    """Return the ``desc`` label of an engine's results: ``nio`` for NIO in both its forms."""
    return {"nio_m": "nio"}.get(engine, engine)


def output_path(destination: Destination, product: Product, extension: str | None = None) -> Path:
    """Return the path of one product.

    Parameters
    ----------
    destination : Destination
    product : Product
    extension : str, optional
        Another one than that of the product itself, as of its sidecar.
    """
    from bids.layout.writing import build_path

    entities = {
        **destination.entities,
        "datatype": destination.kind.datatype,
        **product.entities(destination),
        "extension": extension or product.extension,
    }
    name = build_path(entities, [PATTERN], strict=True)
    if name is None:
        raise ValueError(f"no BIDS name for {entities}")
    return Path(destination.out_dir) / name


def sink(files: Mapping[str, Path | None], destination: Destination) -> list[Path]:
    """Copy the results of one scan under their BIDS names and write the sidecars.

    A file that is there with the same content is left alone, so calling this again is cheap; a file is either
    whole or absent at every moment.

    Parameters
    ----------
    files : mapping of str to path or None
        By the names of `PRODUCTS`; None where a product is optional and this scan has none.
    destination : Destination

    Returns
    -------
    list of pathlib.Path
        The files, sidecars included.

    Raises
    ------
    InputError
        If the output folder cannot be written.
    """
    if absent := [product.name for product in PRODUCTS if not product.optional and files[product.name] is None]:
        raise ValueError(f"{', '.join(absent)}: expected a file, as every scan has one")
    written = []
    for product in PRODUCTS:
        if (path := files[product.name]) is None:
            continue
        target = output_path(destination, product)
        _copy(path, target)
        written.append(target)
        if product.sidecar is not None:
            beside = output_path(destination, product, ".json")
            _write_text(json.dumps(product.sidecar(destination), indent=2) + "\n", beside)
            written.append(beside)
    return written


def discard_leftovers(destination: Destination) -> None:
    """Delete what killed runs left half-written in the folder of one scan."""
    discard_dead_files(output_path(destination, PRODUCTS[0]).parent)


def _copy(source: Path, target: Path) -> None:
    if target.exists() and filecmp.cmp(source, target):
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        found = source.stat()
        os.utime(temporary, ns=(found.st_atime_ns, found.st_mtime_ns))  # makes the next comparison quick


def _write_text(text: str, target: Path) -> None:
    content = text.encode()
    if target.exists() and target.read_bytes() == content:
        return
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
