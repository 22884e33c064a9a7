"""Summary of a comparison, and whether methods differ from one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

from nio_pydra.comparison.cases import ALL
from nio_pydra.metrics import mean_of_lowest

__all__ = ["compare_with", "group_names", "mark", "summarise"]

RESAMPLINGS = 10_000
FEWEST_PARTICIPANTS = 2
"""Of a test and an interval."""
MARKS = ((0.001, "†"), (0.05, "*"))
"""Largest p, and the sign of it behind a number in Table 1 of Mok et al. 2023."""


def summarise(cases: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """Summarise each method over its cases, for each group of structures.

    Parameters
    ----------
    cases : DataFrame
        Of :func:`nio_pydra.comparison.cases.gather_cases`.
    groups : sequence of str
        Groups of structures, `ALL` among them.

    Returns
    -------
    DataFrame
        One row for each method and group, in the order of `cases`: ``method``, ``group``, ``done`` and ``failed``
        (numbers of cases), ``dice_mean``, ``dice_sd``, ``dsc30`` (mean of the lowest 30 % of the cases' Dice, as the
        paper has it), ``dsc30_learn2reg`` (their 30th percentile), ``hd95_mm_mean``, and means and standard deviations
        of ``std_jacobian``, ``fold_percent``, ``fold_percent_raw``, ``inverse_error_median_mm``, ``seconds`` and
        ``processor_seconds``. Standard deviations are those of a sample.
    """
    rows = []
    for method in cases["method"].unique():
        own = cases[cases["method"] == method]
        done = own[own["status"] == "done"]
        for group in groups:
            overlap = _column(done, f"dice_{group}").dropna()
            row = {
                "method": method,
                "group": group,
                "done": len(done),
                "failed": int((own["status"] == "failed").sum()),
                "dice_mean": overlap.mean(),
                "dice_sd": overlap.std(),
                "dsc30": mean_of_lowest(overlap) if len(overlap) else np.nan,
                "dsc30_learn2reg": overlap.quantile(0.3) if len(overlap) else np.nan,
                "hd95_mm_mean": _column(done, f"hd95_mm_{group}").mean(),
            }
            for measure in (
                "std_jacobian", "fold_percent", "fold_percent_raw", "inverse_error_median_mm", "seconds",
                "processor_seconds",
            ):  # fmt: skip
                values = _column(done, measure)
                row |= {f"{measure}_mean": values.mean(), f"{measure}_sd": values.std()}
            rows.append(row)
    return pd.DataFrame(rows)


def compare_with(
    cases: pd.DataFrame, reference: str, groups: Sequence[str], *, tested: Sequence[str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Test each method against a reference by their Dice on the same cases.

    Scans of one person are not independent. So the test takes one difference for each PARTICIPANT, the mean over the
    scans that both methods have done, and the interval of the mean difference is the 95 % percentile bootstrap over
    participants. The test is Wilcoxon's signed-rank test, two-sided. Holm's correction covers the methods of a group.
    The effect size is the matched-pairs rank-biserial correlation: 1 where the reference is better for every
    participant, -1 where it is worse.

    Parameters
    ----------
    cases : DataFrame
        Of :func:`nio_pydra.comparison.cases.gather_cases`.
    reference : str
        Method that the others are compared with.
    groups : sequence of str
        Groups of structures, `ALL` among them.
    tested : sequence of str, optional
        Methods to test, chosen before looking at results; Holm's correction covers these. Default: all others.
    seed : int
        Random seed of the bootstrap.

    Returns
    -------
    DataFrame
        One row for each group and other method: ``group``, ``method``, ``reference``, ``pairs``, ``participants``,
        ``difference`` (reference minus method, mean), ``low`` and ``high`` (of its interval), ``effect``, ``p`` and
        ``p_holm``. With fewer than two participants only the difference is known; the others are NaN.
    """
    rows = []
    done = cases[cases["status"] == "done"].set_index(["method", "case"])
    there = cases["method"].unique()
    others = [method for method in there if method != reference and (tested is None or method in tested)]
    for group in groups:
        compared = [_paired(done, reference, method, f"dice_{group}", seed) for method in others]
        corrected = _holm([row["p"] for row in compared])
        rows += [
            {"group": group, "method": method, "reference": reference, **row, "p_holm": p}
            for method, row, p in zip(others, compared, corrected, strict=True)
        ]
    return pd.DataFrame(rows)


def mark(p: float) -> str:
    """Return the sign that the paper puts behind a number with this p, or none."""
    return next((sign for limit, sign in MARKS if p < limit), "")


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    return table[name].astype(float) if name in table else pd.Series(dtype=float)


def _paired(done: pd.DataFrame, reference: str, method: str, column: str, seed: int) -> dict[str, float]:
    """Compare two methods on the cases that both have done."""
    values = [
        done.xs(name, level="method")[column].astype(float).dropna()
        if name in done.index.get_level_values("method") and column in done
        else pd.Series(dtype=float)
        for name in (reference, method)
    ]
    both = values[0].index.intersection(values[1].index)
    differences = (values[0][both] - values[1][both]).to_numpy()
    participants = np.array([str(case).split("_")[0] for case in both])
    row: dict[str, float] = {
        "pairs": len(both),
        "participants": len(np.unique(participants)),
        "difference": float(differences.mean()) if len(both) else np.nan,
        "low": np.nan,
        "high": np.nan,
        "effect": np.nan,
        "p": np.nan,
    }
    if row["participants"] < FEWEST_PARTICIPANTS:
        return row
    row["low"], row["high"] = _bootstrap(differences, participants, seed)
    own = pd.Series(differences).groupby(participants).mean().to_numpy()
    if own.any():
        row["p"], row["effect"] = float(wilcoxon(own).pvalue), _rank_biserial(own)
    return row


def _rank_biserial(differences: NDArray[np.float64]) -> float:
    kept = differences[differences != 0]
    ranks = rankdata(np.abs(kept))
    return float((ranks[kept > 0].sum() - ranks[kept < 0].sum()) / ranks.sum())


def _bootstrap(differences: NDArray[np.float64], participants: NDArray[np.str_], seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean difference when participants are drawn with replacement."""
    _, numbers = np.unique(participants, return_inverse=True)
    sums, counts = np.bincount(numbers, differences), np.bincount(numbers)
    drawn = np.random.default_rng(seed).integers(0, len(counts), (RESAMPLINGS, len(counts)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _holm(p: Sequence[float]) -> list[float]:
    """Correct for the number of tests made; NaN where there was none."""
    from statsmodels.stats.multitest import multipletests

    found = np.array(p, float)
    tested = np.isfinite(found)
    if tested.any():
        found[tested] = multipletests(found[tested], method="holm")[1]
    return [float(value) for value in found]


def group_names(cases: pd.DataFrame) -> list[str]:
    """Return `ALL` and the groups of structures that cases have a Dice of."""
    found = (name.removeprefix("dice_") for name in cases if name.startswith("dice_") and cases[name].notna().any())
    return [ALL, *sorted(set(found) - {ALL})]
