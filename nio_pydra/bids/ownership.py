"""Whose an output folder is: results of other programs, and a run's own inputs, are never overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlparse

from nio_pydra.errors import InputError
from nio_pydra.system.files import read_json
from nio_pydra.system.places import same_place

__all__ = ["GENERATOR", "refuse_foreign_folder", "refuse_inputs_as_output", "refuse_other_dataset"]

GENERATOR = "nio_pydra"
"""Its name in the ``GeneratedBy`` of derivative datasets."""
OWN_FILES = ("README", ".bidsignore", "dataset_description.json")


def refuse_foreign_folder(folder: Path, generator: str = GENERATOR) -> None:
    """Refuse to write into a BIDS dataset that another program, or nobody known, has made.

    An absent or empty folder is fine, and so is one that names `generator` and no other.

    Raises
    ------
    InputError
        If the folder holds somebody else's dataset.
    """
    advice = "give an output folder of its own."
    try:
        # Listed before the description is read: another run may be writing both, the description first.
        entries = sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InputError(f"The output folder {folder} cannot be read ({error.strerror}): {advice}") from None
    description = folder / "dataset_description.json"
    if not description.exists():
        if held := [name for name in entries if name.startswith(("sub-", "group_")) or name in OWN_FILES]:
            raise InputError(
                f"The output folder {folder} holds {held[0]} and no dataset_description.json that says which program "
                f"made it: {advice}"
            )
        return
    content = read_json(description, f"nobody knows which program made the output folder, {advice.removesuffix('.')}")
    names = _generators(content)
    if names != {generator}:
        whose = " and ".join(sorted(names - {generator})) or "a program that it does not name"
        raise InputError(f"The output folder {folder} holds the dataset of {whose} ({description.name}): {advice}")


def refuse_other_dataset(folder: Path, bids_dir: Path) -> None:
    """Refuse an output folder of nio_pydra that holds the results of another dataset.

    A dataset that was moved, or copied to the place of a job, is the same one: its old folder is gone.

    Raises
    ------
    InputError
        If the dataset that the folder's description names is another folder than `bids_dir`, and exists.
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
    """Refuse a folder to be written that is one of those that are read, by whatever path it is given.

    Parameters
    ----------
    folder : pathlib.Path
    role : str
        What it is for the sentence, as ``output folder``.
    inputs : mapping of str to pathlib.Path
        Folders that are read, by what they are for the sentence.

    Raises
    ------
    InputError
        If the folder is one of them, or is a participant's folder inside one of them.
    """
    for name, path in inputs.items():
        if same_place(folder, path):
            raise InputError(f"The {role} {folder} is {name}: give a folder of its own.")
        inside = folder.resolve()
        if inside.is_relative_to(path.resolve()) and inside.relative_to(path.resolve()).parts[0].startswith("sub-"):
            raise InputError(f"The {role} {folder} lies in a participant's folder of {name}: give a folder of its own.")


def _generators(description: object) -> set[str]:
    """Names of the programs that a dataset_description.json says have made the dataset."""
    listed = description.get("GeneratedBy") if isinstance(description, dict) else None
    found = [entry.get("Name") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {str(name) for name in found if name}
