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
from nio_pydra.comparison.cases import CASES
from nio_pydra.engines.methods import Method
from nio_pydra.errors import InputError
from nio_pydra.system.files import contents_digest

__all__ = ["NO_CASES", "EarlierCases", "is_made_by", "read_cases", "read_earlier"]

log = logging.getLogger("nio_pydra")

KEY = ["method", "case"]
DIGESTS = ("fixed_digest", "moving_digest", "fixed_labels_digest", "moving_labels_digest")
TEXTS = (
    *KEY, "participant", "status", *DIGESTS, "device", "precision", "engine", "preset", "weights", "weights_sha256",
    "training_data", "settings", "versions",
)  # fmt: skip
DECIDES = ["engine", "preset", "settings", "weights_sha256"]
MEASURES = ("structures_", "dice_", "hd95_mm_")
"""Beginnings of the names of columns for each group of structures."""


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
        alike = known.groupby(["method", *DECIDES], dropna=False, sort=False).ngroup()  # weights are read once for each
        first = known[~alike.duplicated()]
        made = {alike[number]: is_made_by(row, methods[row["method"]]) for number, row in first.iterrows()}
        same = alike.map(made).to_numpy(dtype=bool)
        kept = known[same].drop_duplicates(KEY)
        for method, own in known[~same].groupby("method", sort=False):
            log.warning(
                "%d earlier cases of %s are left out: they were made with other settings or weights.", len(own), method
            )
        for method, own in kept.groupby("method", sort=False):
            log.info("%d earlier cases of %s are taken over.", len(own), method)
        return EarlierCases(kept, self.labels.merge(kept[KEY]) if len(self.labels) else self.labels)

    def added_to(
        self, cases: pd.DataFrame, labels: pd.DataFrame, methods: Sequence[str], scans: Sequence[str]
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return cases and labels of this run, and the earlier ones in the place of those that this run has of them.

        Parameters
        ----------
        cases, labels : DataFrame
            Of :func:`nio_pydra.comparison.cases.gather_cases`.
        methods, scans : sequence of str
            Their order in the result.
        """
        if self.cases.empty:
            return cases, labels
        places = {pair: place for place, pair in enumerate(product(methods, scans))}
        known = set(self.cases[KEY].itertuples(index=False, name=None))

        def joined(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
            if len(ours):
                ours = ours[[pair not in known for pair in ours[KEY].itertuples(index=False, name=None)]]
            both = pd.concat([table for table in (ours, theirs) if len(table)] or [ours], ignore_index=True)
            if both.empty:
                return both
            order = [places[pair] for pair in both[KEY].itertuples(index=False, name=None)]
            return both.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)

        return joined(cases, self.cases), joined(labels, self.labels)


NO_CASES = EarlierCases(pd.DataFrame(), pd.DataFrame())


def read_earlier(path: Path, scans: Sequence[Scan], atlas: Atlas) -> EarlierCases:
    """Read the cases of another run that are of the same images and labels.

    Parameters
    ----------
    path : Path
        ``cases.tsv`` of that run. Labels come from ``labels.tsv`` beside it, if that is there.
    scans : sequence of Scan
    atlas : Atlas
        Both with labels.

    Returns
    -------
    EarlierCases
        Those that were done, with image and labels as those of the scan and of the atlas.

    Raises
    ------
    InputError
        If the table cannot be read, lacks a column, has something else than numbers where numbers belong, or holds no
        such case.
    """
    cases = read_cases(path)
    absent = [name for name in (*TEXTS, *(f"{name}all" for name in MEASURES)) if name not in cases]
    if absent:
        raise InputError(
            f"{path} (earlier cases) has no column {', '.join(absent)}: expected cases.tsv of `nio compare` of this "
            "version."
        )
    cases = cases[[name for name in cases if name in TEXTS or name in CASES or name.startswith(MEASURES)]]
    for name in cases:
        try:
            if name not in TEXTS:
                cases = cases.assign(**{name: pd.to_numeric(cases[name])})
            elif name == "versions":
                cases[name].dropna().map(json.loads)
        except ValueError:
            expected = "JSON" if name in TEXTS else "numbers"
            raise InputError(f"{path} (earlier cases), column {name}: expected {expected}, or n/a.") from None
    repeated = cases.loc[cases.duplicated(KEY), KEY]
    known = {scan.name: _digests(scan, atlas) for scan in scans if scan.name in set(cases["case"])}
    same = [known.get(row["case"]) == tuple(row[name] for name in DIGESTS) for _, row in cases.iterrows()]
    here = cases[np.array(same, dtype=bool) & (cases["status"] == "done").to_numpy()]
    if here.empty:
        raise InputError(
            f"{path} (earlier cases) holds no case of these scans to {atlas.image.name}: expected cases of the same "
            "files, images and labels, that are compared now."
        )
    return EarlierCases(here.reset_index(drop=True), _labels(path.with_name("labels.tsv"), here, repeated))


def _digests(scan: Scan, atlas: Atlas) -> tuple[str, ...] | None:
    """Return `DIGESTS` of a scan; None if one of its files cannot be read, which is the problem of the scan alone."""
    try:
        return tuple(contents_digest(path) for path in (atlas.image, scan.image, atlas.labels, scan.labels))
    except InputError:
        return None


def _labels(path: Path, cases: pd.DataFrame, repeated: pd.DataFrame) -> pd.DataFrame:
    """Return the labels of cases; not of those with several rows, as nobody knows whose they are."""
    if not path.is_file():
        return pd.DataFrame()
    labels = read_cases(path)
    if absent := {*KEY, "label", "group", "dice"} - set(labels):
        raise InputError(
            f"{path} (labels of earlier cases) has no column {', '.join(sorted(absent))}: expected labels.tsv of "
            "`nio compare`."
        )
    single = cases[~cases[KEY].apply(tuple, axis=1).isin(list(repeated.itertuples(index=False, name=None)))]
    return labels.merge(single[KEY])


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
        settings = json.loads(row["settings"])
    except (TypeError, ValueError):  # no text, or no JSON
        return False
    preset = row["preset"] if isinstance(row["preset"], str) else None
    if not isinstance(settings, dict):
        return False
    if not method.has_settings({"engine": row["engine"], "preset": preset, "settings": settings}):
        return False
    try:
        return method.has_weights(row["weights_sha256"] if isinstance(row["weights_sha256"], str) else None)
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
        words = dict.fromkeys(TEXTS, str)
        return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["n/a"], dtype=words)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path} (earlier cases) cannot be read ({error}): expected a table between tabs.") from None
