"""Description of the derivative dataset: dataset_description.json, README and .bidsignore."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from nio_pydra import __version__
from nio_pydra.bids.outputs import output_path
from nio_pydra.bids.products import PRODUCTS, Destination, Product
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.files import read_json, write_text

__all__ = ["write_description"]

BIDS_VERSION = "1.10.0"


def write_description(out_dir: Path, command: str, sources: Mapping[str, Path], profile: Profile = BRAIN) -> None:
    """Write dataset_description.json, README and .bidsignore.

    ``GeneratedBy`` keeps the entries of earlier runs.

    Parameters
    ----------
    out_dir : Path
        Root of the derivative dataset.
    command : str
        Command line, for ``GeneratedBy``.
    sources : mapping of str to Path
        Source datasets, by their names in BIDS URIs.
    profile : Profile
        What is registered.
    """
    of_sources = {name: _description(path) for name, path in sources.items()}
    run = {"Name": "nio_pydra", "Version": __version__, "Description": command, **_origin()}
    with _one_at_a_time(out_dir):
        earlier = _description(out_dir).get("GeneratedBy")
        runs = [entry for entry in earlier if entry != run] if isinstance(earlier, list) else []
        description = {
            "Name": f"nio_pydra: {profile.suffix} images aligned to an atlas",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            **{key: value for key, value in of_sources.get("raw", {}).items() if key == "License"},
            "GeneratedBy": [*runs, run],
            "SourceDatasets": [
                {"URL": path.resolve().as_uri()}
                | {key: value for key, value in (("DOI", of_sources[name].get("DatasetDOI")),) if value}
                for name, path in sources.items()
            ],
            "DatasetLinks": {name: path.resolve().as_uri() for name, path in sources.items()},
        }
        texts = {
            "dataset_description.json": json.dumps(description, indent=2) + "\n",
            ".bidsignore": _ignored(profile),
            "README": _readme(profile),
        }
        for name, text in texts.items():
            write_text(text, out_dir / name)


def _description(folder: Path) -> dict[str, Any]:
    """Return the description of a dataset. Empty where there is none, or none that can be read."""
    try:
        return read_json(folder / "dataset_description.json")
    except InputError:
        return {}


def _origin() -> dict[str, Any]:
    """Return where the code and the container of this run come from, as far as they are known."""
    found: dict[str, Any] = {}
    with suppress(PackageNotFoundError):
        links = dict(link.split(", ", 1) for link in metadata("nio-pydra").get_all("Project-URL") or ())
        if url := next((links[name] for name in ("Source", "Repository", "Homepage") if name in links), None):
            found["CodeURL"] = url
    if tag := os.environ.get("NIO_PYDRA_DOCKER_TAG"):
        found["Container"] = {"Type": "docker", "Tag": tag}
    for program in ("apptainer", "singularity"):
        if uri := os.environ.get(f"{program.upper()}_CONTAINER"):
            found["Container"] = {"Type": program, "URI": uri}
            break
    return found


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let runs that share an output folder add to its description one after another, where the system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _ignored(profile: Profile) -> str:
    """Return patterns of the files for which BIDS has no name yet, one a line."""
    names = {
        product: _example_name(product, profile).rsplit("_", 1)[1]
        for product in PRODUCTS
        if not (product.in_bids or product.figure)
    }
    own = [f"*_{name}" for name in names.values()]
    own += [f"*_{name.partition('.')[0]}.json" for product, name in names.items() if product.sidecar]
    others = ("*_cohort-*", "group_*", "logs/", "/weights", "sub-*/figures", "*.html")
    return "".join(f"{pattern}\n" for pattern in dict.fromkeys([*own, *others]))


def _readme(profile: Profile) -> str:
    """Return a text that lists the kinds of files."""
    names = {product.name: "figures/" * product.figure + _example_name(product, profile) for product in PRODUCTS}
    width = max(map(len, names.values())) + 2
    lines = [f"{names[product.name]:{width}}{product.help(profile)}\n" for product in PRODUCTS]
    return (
        f"{profile.suffix} images aligned to an atlas by nio_pydra, one folder per participant:\n\n{''.join(lines)}\n"
        "sub-*.html shows a participant's registrations. `nio-pydra ... group` writes group_*.tsv, a table of all\n"
        "scans, and group_*.html, a page about them.\n\n"
        "antsApplyTransforms, and nitransforms in Python, read the transforms as they are; the command nb-transform\n"
        "applies only their affine. logs/ holds the log and the options of every run, what is known about scans that\n"
        "failed, and CITATION.md and CITATION.bib, a text about the latest run for a methods section, with its\n"
        "references.\n"
    )


def _example_name(product: Product, profile: Profile) -> str:
    """Return the name of a product with stars where names differ, as ``*_space-ATLAS_desc-*_dseg.nii.gz``."""
    example = Destination(
        out_dir="",
        entities={"subject": "X"},
        atlas="ATLAS",
        space={"space": "ATLAS"},
        desc="*",
        source="",
        atlas_reference="",
        labels_desc="*",
        profile=profile.name,
    )
    return f"*{output_path(example, product).name.removeprefix('sub-X')}"
