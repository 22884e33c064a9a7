"""Quality control: what the measures of a registration say, by fixed limits and beside the rest of the dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nio_pydra.bids.records import Place, Result, value_at
from nio_pydra.profiles import BRAIN, Limits, Profile

__all__ = ["DEVIATIONS", "ENOUGH", "MEASURES", "Measure", "Verdict", "judge", "measured", "measures_of"]

Status = Literal["pass", "look", "fail"]
ENOUGH = 10
"""Scans that a scan must be compared with."""
DEVIATIONS = 6.0
"""Robust standard deviations from the median of the dataset from which a scan is an outlier."""
MAD_TO_SIGMA = 1.4826
NONE = (-np.inf, np.inf)


@dataclass(frozen=True)
class Measure:
    """A number that shows failed registrations.

    Attributes
    ----------
    name : str
        Name in messages, and key of `nio_pydra.profiles.Profile.limits`.
    place : tuple
        Place in the record.
    bad : {"low", "high", "both"}
        Which values are suspicious beside those of the other scans.
    least : float
        Deviation from the median below which no scan is an outlier, however alike the others are.
    unit : str
        Unit, after the number.
    """

    name: str
    place: Place
    bad: Literal["low", "high", "both"]
    least: float
    unit: str = ""

    def text(self, value: float) -> str:
        """Return a value with its unit, to three digits."""
        return f"{value:.3g}{self.unit}"


MEASURES = (
    Measure("similarity after the affine", ("similarity", "before"), "low", 0.1),
    Measure("likeness of contrast", ("contrast_correlation",), "low", 0.2),
    Measure("similarity", ("similarity", "after"), "low", 0.1),
    Measure("overlap of masks", ("mask_overlap",), "low", 0.012),
    Measure("empty part of the mask", ("mask_empty_percent",), "high", 1.0, " %"),
    Measure("Jacobian, 1st percentile", ("jacobian_p1",), "low", 0.15),
    Measure("Jacobian, 99th percentile", ("jacobian_p99",), "high", 1.5),
    Measure("folds", ("fold_percent",), "high", 0.1, " %"),
    Measure("folds before their removal", ("before_unfolding", "fold_percent"), "high", 1.0, " %"),
    Measure("smallest scale of the affine", ("affine", "scales", 0), "both", 0.1),
    Measure("largest scale of the affine", ("affine", "scales", -1), "both", 0.1),
    Measure("turn by the affine", ("affine", "turn_degrees"), "high", 20.0, "°"),
)


@dataclass(frozen=True)
class Verdict:
    """What the measures of a scan say.

    Attributes
    ----------
    status : {"pass", "look", "fail"}
        ``look``: somebody must look at it. ``fail``: it did not run to its end, or cannot be right.
    reasons : tuple of str
        Why it is not ``pass``.
    """

    status: Status
    reasons: tuple[str, ...] = ()


def judge(results: Sequence[Result], profile: Profile = BRAIN) -> dict[str, Verdict]:
    """Judge the results of a dataset.

    A measure beyond a limit of the profile is a reason to look, or a failure. So is, as a reason to look, a measure far
    from those of the other scans with the same atlas, engine and preset, where these are at least `ENOUGH`: more than
    `DEVIATIONS` robust standard deviations (1.4826 times the median of absolute deviations) from their median.

    Parameters
    ----------
    results : sequence of Result
        All results of a dataset.
    profile : Profile
        What was registered.

    Returns
    -------
    dict of str to Verdict
        By the names of the results.
    """
    verdicts = {result.name: Verdict("fail", (result.reason,)) for result in results if result.failed}
    for group in _groups(results):
        usual = _usual(group)
        for result in group:
            verdicts[result.name] = _verdict(result, usual, profile.limits)
    return {result.name: verdicts[result.name] for result in results}


def measures_of(results: Sequence[Result], profile: Profile = BRAIN) -> dict[str, list[dict[str, str]]]:
    """Return the measures of each result as texts: ``name``, ``value``, ``limits`` and what is ``usual``."""
    found: dict[str, list[dict[str, str]]] = {result.name: [] for result in results}
    for group in _groups(results):
        usual = _usual(group)
        for result in group:
            for measure in MEASURES:
                if (value := measured(result, measure)) is not None:
                    limit = profile.limits.get(measure.name, Limits())
                    found[result.name].append(
                        {
                            "name": measure.name,
                            "value": measure.text(value),
                            "limits": _expected(limit.look, measure),
                            "usual": _expected(usual.get(measure.name, NONE), measure),
                        }
                    )
    return found


def _groups(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results that can be compared: done, with the same atlas, engine and preset."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        if not result.failed:
            kind = (result.atlas, result.record["engine"], result.record.get("preset"))
            groups.setdefault(kind, []).append(result)
    return list(groups.values())


def measured(result: Result, measure: Measure) -> float | None:
    """Return the value of a measure; None where the record has none."""
    value = value_at(result.record, measure.place)
    return float(value) if isinstance(value, int | float) else None


def _usual(group: Sequence[Result]) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest usual value of each measure, where there are enough values."""
    usual = {}
    for measure in MEASURES:
        values = np.array([value for result in group if (value := measured(result, measure)) is not None])
        if len(values) <= ENOUGH:
            continue
        median = np.median(values)
        spread = max(DEVIATIONS * MAD_TO_SIGMA * np.median(np.abs(values - median)), measure.least)
        low = -np.inf if measure.bad == "high" else median - spread
        high = np.inf if measure.bad == "low" else median + spread
        usual[measure.name] = (float(low), float(high))
    return usual


def _verdict(result: Result, usual: Mapping[str, tuple[float, float]], limits: Mapping[str, Limits]) -> Verdict:
    failures, looks = [], []
    for measure in MEASURES:
        value = measured(result, measure)
        if value is None:
            continue
        found = f"{measure.name} {measure.text(value)}"
        limit = limits.get(measure.name, Limits())
        if not limit.fail[0] <= value <= limit.fail[1]:
            failures.append(f"{found}, expected {_expected(limit.fail, measure)}")
        elif not limit.look[0] <= value <= limit.look[1]:
            looks.append(f"{found}, expected {_expected(limit.look, measure)}")
        elif measure.name in usual and not usual[measure.name][0] <= value <= usual[measure.name][1]:
            looks.append(f"{found}, expected {_expected(usual[measure.name], measure)} beside the other scans")
    if failures:
        return Verdict("fail", (*failures, *looks))
    return Verdict("look", tuple(looks)) if looks else Verdict("pass")


def _expected(limits: tuple[float, float], measure: Measure) -> str:
    low, high = limits
    if limits == NONE:
        return ""
    if np.isinf(low):
        return f"at most {measure.text(high)}"
    return f"at least {measure.text(low)}" if np.isinf(high) else f"{measure.text(low)} to {measure.text(high)}"
