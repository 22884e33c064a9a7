"""What a derivative dataset says about itself: dataset_description.json, README and .bidsignore."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nio_pydra import __version__
from nio_pydra.errors import InputError
from nio_pydra.system.files import atomic_path, temporary_file

__all__ = ["require_writable", "write_description"]

BIDS_VERSION = "1.10.0"
IGNORED = ("*_xfm.h5", "*_record.json", "*_cohort-*", "group_*", "logs/")
"""What BIDS does not name yet."""
README = """T1w images aligned to an atlas by nio_pydra, one folder per participant:

*_from-T1w_to-ATLAS_mode-image_xfm.h5   ITK transform that resamples the T1w image into the atlas's space
*_from-ATLAS_to-T1w_mode-image_xfm.h5   its inverse
*_space-ATLAS_desc-*_T1w.nii.gz         the T1w image in the atlas's space
*_space-ATLAS_desc-*_dseg.nii.gz        the participant's labels in the atlas's space
*_space-T1w_atlas-ATLAS_dseg.nii.gz     the atlas's labels in the participant's space
*_desc-brain_mask.nii.gz                the brain mask that was used
*_record.json                           settings, time, memory, and measures of the result

antsApplyTransforms and nitransforms read the transforms as they are. logs/ holds one file per run.
"""


def write_description(out_dir: Path, command: str, sources: Mapping[str, Path]) -> None:
    """Write dataset_description.json, README and .bidsignore.

    Parameters
    ----------
    out_dir : pathlib.Path
    command : str
        The command line, for ``GeneratedBy``.
    sources : mapping of str to pathlib.Path
        Source datasets by the name that BIDS URIs use for them.
    """
    description = {
        "Name": "nio_pydra: T1w images aligned to an atlas",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "nio_pydra", "Version": __version__, "Description": command}],
        "SourceDatasets": [{"URL": path.resolve().as_uri()} for path in sources.values()],
        "DatasetLinks": {name: path.resolve().as_uri() for name, path in sources.items()},
    }
    texts = {
        "dataset_description.json": json.dumps(description, indent=2) + "\n",
        ".bidsignore": "\n".join(IGNORED) + "\n",
        "README": README,
    }
    for name, text in texts.items():
        with atomic_path(out_dir / name) as temporary:
            temporary.write_text(text)


def require_writable(folder: Path, role: str) -> None:
    """Make a folder and raise `InputError` if that, or writing into it, is impossible."""
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        what = "is a file" if folder.exists() else "is a link that leads nowhere"
        raise InputError(f"The {role} {folder} cannot be written (it {what}): choose another place.")
    try:
        with temporary_file(folder) as probe:
            probe.write_text("?")
    except OSError as error:
        raise InputError(f"The {role} {folder} cannot be written ({error.strerror}): choose another place.") from None
