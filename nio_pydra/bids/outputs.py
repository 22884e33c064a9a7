"""Results of one scan as BIDS derivatives: names, sidecars, and the copies in the output folder."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nio_pydra.bids.products import PRODUCTS, Destination, Product
from nio_pydra.errors import InputError
from nio_pydra.system.files import atomic_path, read_json, write_changed
from nio_pydra.system.files import discard_leftovers as discard_dead_files

__all__ = ["discard_leftovers", "engine_desc", "output_path", "sink"]

# The patterns of pybids leave out `atlas`, and have no `xfm`.
PATTERN = (
    "sub-{subject}[/ses-{session}]/{datatype}/sub-{subject}[_ses-{session}]"
    "[_acq-{acquisition}][_ce-{ceagent}][_rec-{reconstruction}][_run-{run}]"
    "[_from-{from}][_to-{to}][_mode-{mode}][_space-{space}][_cohort-{cohort}][_res-{res}][_atlas-{atlas}][_desc-{desc}]"
    "_{suffix}{extension}"
)


def engine_desc(engine: str) -> str:
    """Return the ``desc`` label of an engine's results: ``nio`` for both ``nio`` and ``nio_m``."""
    return {"nio_m": "nio"}.get(engine, engine)


def output_path(destination: Destination, product: Product, extension: str | None = None) -> Path:
    """Return the path of one product.

    Parameters
    ----------
    destination : Destination
        Scan, atlas and output folder.
    product : Product
        Kind of file.
    extension : str, optional
        Extension of a file beside the product, as ``.json``. Default: that of the product.
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
    if product.figure:  # of all sessions in one folder, as in fMRIPrep
        return Path(destination.out_dir, f"sub-{destination.entities['subject']}", "figures", Path(name).name)
    return Path(destination.out_dir) / name


def sink(files: Mapping[str, Path | None], destination: Destination) -> list[Path]:
    """Copy the results of one scan under their BIDS names and write the sidecars.

    A file with the same content is not written again. A file is either whole or absent at every moment. Where the
    transforms are new, results of earlier ones that this registration does not have are deleted.

    Parameters
    ----------
    files : mapping of str to Path or None
        Files by the names of `PRODUCTS`. None: this scan has no such file, and the product is optional.
    destination : Destination
        Scan, atlas and output folder.

    Returns
    -------
    list of Path
        Files and sidecars.

    Raises
    ------
    InputError
        If the output folder cannot be written to.
    """
    if absent := [product.name for product in PRODUCTS if not product.optional and files[product.name] is None]:
        raise ValueError(f"{', '.join(absent)}: expected a file, as every scan has one")
    transform = PRODUCTS[0]
    if not _same(files[transform.name], output_path(destination, transform)):
        _discard_earlier(files, destination)
    new_mask = not _same(files["mask"], output_path(destination, _row("mask")))
    written = []
    for product in (*PRODUCTS[1:], transform):  # the transform last: where it is old, the next run begins anew
        if (path := files[product.name]) is None:
            continue
        target = output_path(destination, product)
        _copy(path, target)
        written.append(target)
        if product.sidecar is not None:
            sidecar = output_path(destination, product, ".json")
            written.append(write_changed(json.dumps(product.sidecar(destination), indent=2) + "\n", sidecar))
    _discard_old_masks(destination, conformed=new_mask and files["conformed_mask"] is None)
    return written


def discard_leftovers(destination: Destination) -> None:
    """Delete unfinished files of killed runs in the folder of one scan."""
    discard_dead_files(output_path(destination, PRODUCTS[0]).parent)


def _discard_earlier(files: Mapping[str, Path | None], destination: Destination) -> None:
    """Delete what an earlier registration has and this one has not, label images under another name among it."""
    for product in PRODUCTS:
        if files[product.name] is not None or product.name == "conformed_mask":
            continue
        for path in (output_path(destination, product), output_path(destination, product, ".json")):
            path.unlink(missing_ok=True)
    labels = _row("labels")
    named = output_path(replace(destination, labels_desc="ANY"), labels)
    for path in named.parent.glob(named.name.replace("desc-ANY", "desc-*")):
        path.unlink()
        path.with_name(path.name.removesuffix(labels.extension) + ".json").unlink(missing_ok=True)


def _discard_old_masks(destination: Destination, *, conformed: bool) -> None:
    """Delete masks of ours that fMRIPrep would take in place of its own. Masks of other programs stay.

    These are the mask under its former name, ``desc-brain_mask``, and, if `conformed`, that of an earlier mask.
    """
    mask, conformed_mask = _row("mask"), _row("conformed_mask")
    old = [mask, conformed_mask] if conformed else [mask]
    with suppress(InputError):  # there is none
        sidecar = output_path(destination, conformed_mask, ".json")
        found = read_json(sidecar).get("Description")
        if found in [row.sidecar(destination)["Description"] for row in old if row.sidecar is not None]:
            output_path(destination, conformed_mask).unlink(missing_ok=True)
            sidecar.unlink(missing_ok=True)


def _row(name: str) -> Product:
    return next(product for product in PRODUCTS if product.name == name)


def _same(source: Path | None, target: Path) -> bool:
    return source is not None and target.exists() and filecmp.cmp(source, target)


def _copy(source: Path, target: Path) -> None:
    """Copy a file unless the target has the same content."""
    if _same(source, target):
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        times = source.stat()
        os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))  # makes the next comparison quick
