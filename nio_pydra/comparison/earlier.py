"""Cases of another run of a comparison, by their table alone: made on another machine, or kept without their images."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan
from nio_pydra.engines.methods import Method
from nio_pydra.errors import InputError
from nio_pydra.system.files import contents_digest

__all__ = ["NO_CASES", "EarlierCases", "is_made_by", "read_cases", "read_earlier"]

log = logging.getLogger("nio_pydra")

NEEDED = (
    "method", "case", "participant", "status", "fixed_digest", "moving_digest", "engine", "preset", "settings",
    "weights_sha256",
)  # fmt: skip
KEY = ["method", "case"]


@dataclass(frozen=True)
class EarlierCases:
    """Cases that are taken over.

    Attributes
    ----------
    cases, labels : DataFrame
        As those of :func:`nio_pydra.comparison.cases.gather_cases`.
    """

    cases: pd.DataFrame
    labels: pd.DataFrame

    def of(self, method: str) -> set[str]:
        """Return the names of the scans that a method has done."""
        return set() if self.cases.empty else set(self.cases.loc[self.cases["method"] == method, "case"])

    def kept_for(self, methods: Mapping[str, Method]) -> EarlierCases:
        """Return the cases that were made by these methods as they are now: with the same settings and weights.

        Of several such rows of a case, the first one counts.

        Parameters
        ----------
        methods : mapping of str to Method
            By name. Of one whose weights are not here, settings alone are compared.
        """
        if self.cases.empty:
            return self
        known = self.cases[self.cases["method"].isin(list(methods))]
        same = np.array([is_made_by(row, methods[row["method"]]) for _, row in known.iterrows()], dtype=bool)
        for method, own in known[~same].groupby("method", sort=False):
            log.warning(
                "%d earlier cases of %s are left out: they were made with other settings or weights.", len(own), method
            )
        return EarlierCases(known[same].drop_duplicates(KEY), self.labels)

    def added_to(
        self, cases: pd.DataFrame, labels: pd.DataFrame, methods: Sequence[str], scans: Sequence[str]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return cases and labels of this run, and earlier ones where this run has none.

        Parameters
        ----------
        cases, labels : DataFrame
            Of :func:`nio_pydra.comparison.cases.gather_cases`.
        methods, scans : sequence of str
            Their order in the result; other methods are left out.
        """
        if self.cases.empty:
            return cases, labels
        places = {pair: place for place, pair in enumerate(product(methods, scans))}
        done = cases[cases["status"] == "done"] if len(cases) else self.cases[:0]
        taken = _without(self.cases[self.cases["method"].isin(methods)], done)

        def joined(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
            both = pd.concat([table for table in (ours, theirs) if len(table)] or [ours], ignore_index=True)
            order = [places[pair] for pair in zip(both["method"], both["case"], strict=True)] if len(both) else []
            return both.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)

        known = self.labels.merge(taken[KEY]) if len(self.labels) else self.labels
        return joined(_without(cases, taken), taken), joined(labels, known)


NO_CASES = EarlierCases(pd.DataFrame(), pd.DataFrame())


def read_earlier(path: Path, scans: Sequence[Scan], atlas: Atlas) -> EarlierCases:
    """Read the cases of another run that are of the same images.

    Parameters
    ----------
    path : Path
        ``cases.tsv`` of that run. Labels come from ``labels.tsv`` beside it, if that is there.
    scans : sequence of Scan
    atlas : Atlas

    Returns
    -------
    EarlierCases
        Those that were done, with a moving image as that of the scan and a fixed image as that of the atlas.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column, or holds no such case.
    """
    cases = read_cases(path)
    if absent := [name for name in NEEDED if name not in cases]:
        raise InputError(
            f"{path} (earlier cases) has no column {', '.join(absent)}: expected cases.tsv of `nio compare` of this "
            "version."
        )
    ours = {scan.name: scan for scan in scans}
    here = cases[
        cases["case"].isin(list(ours))
        & (cases["status"] == "done")
        & (cases["fixed_digest"] == contents_digest(atlas.image))
    ]
    digests = {name: contents_digest(ours[name].image) for name in here["case"].unique()}
    here = here[here["moving_digest"] == here["case"].map(digests)]
    if here.empty:
        raise InputError(
            f"{path} (earlier cases) holds no case of these scans to {atlas.image.name}: expected cases of the same "
            "image files that are compared now."
        )
    beside = path.with_name("labels.tsv")
    labels = read_cases(beside) if beside.is_file() else pd.DataFrame()
    if len(labels):
        labels = labels.merge(here[KEY].drop_duplicates())
    return EarlierCases(here.reset_index(drop=True), labels)


def _without(table: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose method and case are not those of a row of another table."""
    if table.empty or others.empty:
        return table
    known = set(zip(others["method"], others["case"], strict=True))
    return table[[pair not in known for pair in zip(table["method"], table["case"], strict=True)]]


def is_made_by(row: Mapping[str, Any], method: Method) -> bool:
    """Return whether a row of a table of cases was made with the settings and weights that a method has now.

    Parameters
    ----------
    row : mapping
        With ``engine``, ``preset``, ``settings`` (JSON) and ``weights_sha256``; what it does not know is no text.
    method : Method
        If its weights are not here, settings alone are compared.
    """
    try:
        record = {"engine": row["engine"], "settings": json.loads(row["settings"])}
    except (TypeError, ValueError):  # no text, or no JSON
        return False
    record["preset"] = row["preset"] if isinstance(row["preset"], str) else None
    if not method.has_settings(record):
        return False
    digest = row["weights_sha256"]
    try:
        return not isinstance(digest, str) or method.has_weights(digest)
    except InputError:  # weights that are not here
        return True


def read_cases(path: Path) -> pd.DataFrame:
    """Read a table of cases, in which "n/a" is what is not known.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        words = dict.fromkeys(NEEDED, str)
        return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a"], dtype=words)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path} (earlier cases) cannot be read ({error}): expected a table between tabs.") from None
