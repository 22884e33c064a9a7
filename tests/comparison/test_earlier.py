"""Cases of another run beside those of this one."""

import json

import pandas as pd

from nio_pydra.comparison.earlier import EarlierCases, is_made_by
from nio_pydra.engines.methods import parse_method
from nio_pydra.networks.checkpoints import default_weights, weights_digest


def _rows(*rows: tuple[str, str, str, float | None]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["method", "case", "status", "dice_all"])


def test_earlier_cases_stand_in_the_place_of_those_of_this_run_and_the_order_is_that_of_methods_and_scans():
    own = _rows(("two", "sub-1", "done", 0.5), ("two", "sub-2", "failed", None), ("one", "sub-1", "done", 0.6))
    earlier = _rows(("two", "sub-2", "done", 0.2), ("one", "sub-2", "done", 0.3), ("one", "sub-1", "done", 0.4))
    labels = earlier[["method", "case"]].assign(label=17)
    ours = pd.DataFrame([("two", "sub-1", 5), ("one", "sub-1", 6)], columns=["method", "case", "label"])
    cases, kept = EarlierCases(earlier, labels).added_to(own, ours, ["one", "two"], ["sub-1", "sub-2"])
    assert cases.to_dict("split")["data"] == [
        ["one", "sub-1", "done", 0.4],
        ["one", "sub-2", "done", 0.3],
        ["two", "sub-1", "done", 0.5],
        ["two", "sub-2", "done", 0.2],
    ]
    assert list(kept["label"]) == [17, 17, 5, 17]


def test_without_earlier_cases_those_of_this_run_stay_as_they_are():
    own = _rows(("two", "sub-1", "done", 0.5))
    cases, labels = EarlierCases(own[:0], pd.DataFrame()).added_to(own, pd.DataFrame(), ["two"], ["sub-1"])
    assert cases is own and labels.empty


def test_rows_are_of_a_method_by_settings_and_weights():
    lapirn, affine = parse_method("lapirn"), parse_method("affine")
    record = lapirn.record()
    row = {"engine": "lapirn", "preset": "paper", "settings": json.dumps(record["settings"])}
    digest = weights_digest(default_weights())
    assert is_made_by(row | {"weights_sha256": digest}, lapirn)
    for wrong in ("", "ab" * 32, None, float("nan")):
        assert not is_made_by(row | {"weights_sha256": wrong}, lapirn)
    for settings in ("[]", "5", "null", "broken", None, "{}"):
        changed = row | {"settings": settings, "weights_sha256": digest}
        assert is_made_by(changed, lapirn) == (settings == "{}")  # what is not said had its default
    assert is_made_by({"engine": "affine", "preset": "default", "settings": "{}", "weights_sha256": None}, affine)
    assert not is_made_by(row | {"weights_sha256": digest}, affine)
