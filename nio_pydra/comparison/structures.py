"""Names of labels, and the groups that results are given for."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nio_pydra.errors import InputError

__all__ = ["CORTICAL", "SUBCORTICAL", "Structures", "read_structures"]

CORTICAL, SUBCORTICAL = "cortical", "subcortical"
FREESURFER_CORTEX = (3, 42)
NEUROMORPHOMETRICS_CORTEX = range(100, 250)
FREESURFER_PARCELLATIONS = (range(1000, 3000), range(11100, 13000))
"""Areas of the cortex. Between them are those of the white matter."""


@dataclass(frozen=True)
class Structures:
    """What label numbers mean.

    Attributes
    ----------
    names : mapping of int to str
        Name by label.
    groups : mapping of int to str
        Group by label, where it is not the one that the numbers of FreeSurfer and Neuromorphometrics say.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    groups: Mapping[int, str] = field(default_factory=dict)

    def group(self, label: int) -> str:
        """Return the group of a label: cortical, subcortical, or one of the table."""
        if label in self.groups:
            return self.groups[label]
        known = (FREESURFER_CORTEX, NEUROMORPHOMETRICS_CORTEX, *FREESURFER_PARCELLATIONS)
        return CORTICAL if any(label in own for own in known) else SUBCORTICAL


def read_structures(path: Path) -> Structures:
    """Read names of labels, and groups if there are some, from a BIDS ``dseg.tsv``.

    Parameters
    ----------
    path : Path
        Table between tabs with the columns ``index`` and ``name``; ``group`` is optional.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column, or has an index that is no whole number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} (names of labels) cannot be read ({error}): expected a table between tabs.") from None
    if rows and not {"index", "name"} <= rows[0].keys():
        raise InputError(f"{path} (names of labels) has the columns {', '.join(rows[0])}: expected index and name.")
    try:
        names = {int(row["index"]): row["name"] or row["index"] for row in rows}
    except (TypeError, ValueError) as error:  # a row that ends early has None
        raise InputError(f"{path} (names of labels): {error}; expected whole numbers as index.") from None
    groups = {int(row["index"]): row["group"] for row in rows if row.get("group") not in (None, "", "n/a")}
    return Structures(names, groups)
