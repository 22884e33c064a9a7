"""Description of the derivative dataset: dataset_description.json, README and .bidsignore."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nio_pydra import __version__
from nio_pydra.bids.outputs import output_path
from nio_pydra.bids.products import PRODUCTS, Destination, Product
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, Profile
from nio_pydra.system.files import atomic_path, temporary_file

__all__ = ["require_writable", "write_description"]

BIDS_VERSION = "1.10.0"


def write_description(out_dir: Path, command: str, sources: Mapping[str, Path], profile: Profile = BRAIN) -> None:
    """Write dataset_description.json, README and .bidsignore.

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
    description = {
        "Name": f"nio_pydra: {profile.suffix} images aligned to an atlas",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "nio_pydra", "Version": __version__, "Description": command}],
        "SourceDatasets": [{"URL": path.resolve().as_uri()} for path in sources.values()],
        "DatasetLinks": {name: path.resolve().as_uri() for name, path in sources.items()},
    }
    texts = {
        "dataset_description.json": json.dumps(description, indent=2) + "\n",
        ".bidsignore": _ignored(profile),
        "README": _readme(profile),
    }
    for name, text in texts.items():
        with atomic_path(out_dir / name) as temporary:
            temporary.write_text(text)


def _ignored(profile: Profile) -> str:
    """Return patterns of the files for which BIDS has no name yet, one a line."""
    own = [
        f"*_{_example_name(product, profile).rsplit('_', 1)[1]}"
        for product in PRODUCTS
        if not (product.in_bids or product.figure)
    ]
    others = ("*_cohort-*", "group_*", "logs/", "sub-*/figures", "*.html")
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
        "antsApplyTransforms and nitransforms read the transforms as they are. logs/ holds one file per run, and\n"
        "CITATION.md and CITATION.bib, a text about the latest run for a methods section, with its references.\n"
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


def require_writable(folder: Path, role: str) -> None:
    """Make a folder. Raise `InputError` if it cannot be made or written to."""
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        what = "is a file" if folder.exists() else "is a broken link"
        raise InputError(f"The {role} {folder} cannot be written (it {what}): choose another place.")
    try:
        with temporary_file(folder) as probe:
            probe.write_text("?")
    except OSError as error:
        raise InputError(f"The {role} {folder} cannot be written ({error.strerror}): choose another place.") from None
