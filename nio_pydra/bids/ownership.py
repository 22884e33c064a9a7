"""Checks of the output folder: results of other programs and inputs of the run are never overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from nio_pydra.errors import InputError
from nio_pydra.system.files import read_json
from nio_pydra.system.places import same_place

__all__ = ["refuse_foreign_folder", "refuse_inputs_as_output", "refuse_other_dataset"]

DESCRIPTION_FILES = ("README", ".bidsignore", "dataset_description.json")


def refuse_foreign_folder(folder: Path, generator: str = "nio_pydra") -> None:
    """Refuse an output folder with a BIDS dataset that another program made, or that names no program.

    Parameters
    ----------
    folder : Path
        Output folder. It may be absent or empty.
    generator : str
        The only program that ``GeneratedBy`` may name.

    Raises
    ------
    InputError
        If the folder cannot be used as output folder.
    """
    advice = "give an output folder of its own."
    try:
        # Listed before the description is read: another run may be writing, and it writes the description first.
        entries = sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InputError(f"The output folder {folder} cannot be read ({error.strerror}): {advice}") from None
    description = folder / "dataset_description.json"
    if not description.exists():
        if held := [name for name in entries if name.startswith(("sub-", "group_")) or name in DESCRIPTION_FILES]:
            raise InputError(
                f"The output folder {folder} holds {held[0]} and no dataset_description.json that says which program "
                f"made it: {advice}"
            )
        return
    content = read_json(description, f"the program that made the output folder is unknown, {advice.removesuffix('.')}")
    names = _generators(content)
    if names != {generator}:
        makers = " and ".join(sorted(names - {generator})) or "a program that it does not name"
        raise InputError(f"The output folder {folder} holds the dataset of {makers} ({description.name}): {advice}")


def refuse_other_dataset(folder: Path, bids_dir: Path) -> None:
    """Refuse an output folder of nio_pydra that holds the results of another dataset.

    A dataset whose old folder is gone counts as the same one: it was moved, or copied for a job.

    Raises
    ------
    InputError
        If the folder's description names a dataset that exists and is not `bids_dir`.
    """
    try:
        link = read_json(folder / "dataset_description.json")["DatasetLinks"]["raw"]
        earlier = Path(unquote(urlparse(link).path))
    except (InputError, ValueError, KeyError, TypeError, AttributeError):
        return
    if earlier.is_dir() and not same_place(earlier, bids_dir):
        raise InputError(
            f"The output folder {folder} holds results of the dataset {earlier} (dataset_description.json), not of "
            f"{bids_dir}: give an output folder of its own."
        )


def refuse_inputs_as_output(folder: Path, role: str, inputs: Mapping[str, Path]) -> None:
    """Refuse to write to a folder that is also read, even under another path.

    Parameters
    ----------
    folder : Path
        Folder to be written to.
    role : str
        Name of the folder in the message, as ``output folder``.
    inputs : mapping of str to Path
        Folders that are read, by their names in the message.

    Raises
    ------
    InputError
        If the folder is one of the inputs, or lies in a participant's folder of one.
    """
    for name, path in inputs.items():
        if same_place(folder, path):
            raise InputError(f"The {role} {folder} is {name}: give a folder of its own.")
        resolved, root = folder.resolve(), path.resolve()
        if resolved.is_relative_to(root) and resolved.relative_to(root).parts[0].startswith("sub-"):
            raise InputError(f"The {role} {folder} lies in a participant's folder of {name}: give a folder of its own.")


def _generators(description: Mapping[str, Any]) -> set[str]:
    """Return the programs that a dataset_description.json names as makers of the dataset."""
    listed = description.get("GeneratedBy")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {str(entry["Name"]) for entry in entries if entry.get("Name")}
