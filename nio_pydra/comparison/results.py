"""What a comparison found, as its tables, pictures and page take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from nio_pydra.bids.atlas import Atlas
from nio_pydra.comparison.cases import ALL
from nio_pydra.comparison.statistics import compare_with, group_names, summarise

__all__ = ["MethodDescription", "Results"]


@dataclass(frozen=True)
class MethodDescription:
    """What readers have to know of a method, and where its results are.

    Attributes
    ----------
    folder : Path
        Derivative dataset.
    engine, preset : str
    citation : str
        Whom to cite.
    changes : str
        Settings that differ from the preset's; empty where none do.
    weights : str or None
        Name of the network's weights; None: it has no network.
    training_data : str or None
        What the network was trained on, in a few words.
    """

    folder: Path
    engine: str
    preset: str
    citation: str
    changes: str = ""
    weights: str | None = None
    training_data: str | None = None


@dataclass(frozen=True)
class Results:
    """Methods on the same scans: what was planned, and what came of it.

    Attributes
    ----------
    title : str
    atlas : Atlas
        With labels.
    scans : sequence of str
        Names of all scans of the comparison, as ``sub-01_ses-a``, done or not.
    methods : mapping of str to MethodDescription
        By name, in the order of tables and pictures.
    reference : str
        Method that the others are tested against; one of `methods`.
    cases, labels : DataFrame
        Of :func:`nio_pydra.comparison.cases.gather_cases`.
    tested : sequence of str or None
        Methods that are tested against the reference. None: all others.
    not_run : sequence of str
        Methods whose program or weights are not here: their results are those of earlier runs.
    left_out : mapping of str to str
        Why a method that was asked for has neither been run nor has results, by its name.
    command : str
        Command line that gives these results.
    machine : mapping of str to str
        What else there is to say of how and where they were made, as ``{"Processor": "..."}``.

    Raises
    ------
    ValueError
        If the reference is none of the methods.
    """

    title: str
    atlas: Atlas
    scans: Sequence[str]
    methods: Mapping[str, MethodDescription]
    reference: str
    cases: pd.DataFrame
    labels: pd.DataFrame
    tested: Sequence[str] | None = None
    not_run: Sequence[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reference not in self.methods:
            raise ValueError(f"the reference {self.reference} is none of {', '.join(self.methods)}")

    @cached_property
    def groups(self) -> list[str]:
        """All structures, and the groups that they belong to where there are several."""
        found = group_names(self.cases)
        return found if len(found) > 2 else [ALL]

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Summary of each method and group, by both; methods without any case are not in it."""
        if self.cases.empty:
            return pd.DataFrame(index=pd.MultiIndex.from_tuples([], names=["method", "group"]))
        return summarise(self.cases, self.groups).set_index(["method", "group"])

    @cached_property
    def tests(self) -> pd.DataFrame:
        """Each method against the reference, by method and group; empty where nothing can be tested."""
        found = pd.DataFrame()
        if not self.cases.empty:
            found = compare_with(self.cases, self.reference, self.groups, tested=self.tested)
        if found.empty or not found["p"].notna().any():
            return pd.DataFrame(index=pd.MultiIndex.from_tuples([], names=["method", "group"]))
        return found.set_index(["method", "group"])

    def done(self, method: str) -> pd.DataFrame:
        """Return the cases that a method has done."""
        return self._with_status(method, "done")

    def failed(self, method: str) -> pd.DataFrame:
        """Return the cases that a method could not do."""
        return self._with_status(method, "failed")

    def deforms(self, method: str) -> bool:
        """Return whether a method looks for a deformation: all but the affine do."""
        return self.methods[method].engine != "affine"

    @cached_property
    def settings(self) -> dict[str, str]:
        """All settings of each method that has done a case, as JSON."""
        found = {name: done["settings"].dropna() for name in self.methods if "settings" in (done := self.done(name))}
        return {name: texts.iloc[0] for name, texts in found.items() if len(texts)}

    def structure_count(self, group: str) -> int:
        """Return how many structures a group has: the most of a case where labels are not known one by one."""
        known = self.cases[f"structures_{group}"].max() if f"structures_{group}" in self.cases else np.nan
        most = int(known) if np.isfinite(known) else 0
        if self.labels.empty:
            return most
        own = self.labels if group == ALL else self.labels[self.labels["group"] == group]
        return max(most, int(np.unique(own["label"]).size))

    def _with_status(self, method: str, status: str) -> pd.DataFrame:
        if self.cases.empty:
            return self.cases
        return self.cases[(self.cases["method"] == method) & (self.cases["status"] == status)]
