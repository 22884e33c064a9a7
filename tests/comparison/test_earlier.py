"""Cases of another run beside those of this one."""

import pandas as pd

from nio_pydra.comparison.earlier import EarlierCases


def _rows(*rows: tuple[str, str, str, float | None]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["method", "case", "status", "dice_all"])


def test_this_run_counts_first_and_earlier_cases_stand_for_what_it_lacks_or_could_not_do():
    own = _rows(("two", "sub-1", "done", 0.5), ("two", "sub-2", "failed", None))
    earlier = _rows(
        ("two", "sub-1", "done", 0.1), ("two", "sub-2", "done", 0.2), ("one", "sub-2", "done", 0.3),
        ("absent", "sub-1", "done", 0.9),
    )  # fmt: skip
    labels = earlier[["method", "case"]].assign(label=17)
    cases, kept = EarlierCases(earlier, labels).added_to(own, pd.DataFrame(), ["one", "two"], ["sub-1", "sub-2"])
    assert cases.to_dict("split")["data"] == [
        ["one", "sub-2", "done", 0.3],
        ["two", "sub-1", "done", 0.5],
        ["two", "sub-2", "done", 0.2],
    ]
    assert kept[["method", "case"]].to_dict("split")["data"] == [["one", "sub-2"], ["two", "sub-2"]]


def test_without_earlier_cases_those_of_this_run_stay_as_they_are():
    own = _rows(("two", "sub-1", "done", 0.5))
    cases, labels = EarlierCases(own[:0], pd.DataFrame()).added_to(own, pd.DataFrame(), ["two"], ["sub-1"])
    assert cases is own and labels.empty
