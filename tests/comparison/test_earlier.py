"""Cases of another run beside those of this one."""

import json
from types import SimpleNamespace

import pandas as pd

from nio_pydra.bids.atlas import Atlas
from nio_pydra.comparison.earlier import TEXTS, EarlierCases, is_made_by, read_earlier
from nio_pydra.engines.methods import parse_method
from nio_pydra.networks.checkpoints import default_weights, weights_digest
from nio_pydra.system.files import contents_digest


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


def test_a_scan_that_cannot_be_read_keeps_no_other_from_being_taken_over(tmp_path):
    for name in ("atlas", "labels", "good"):
        (tmp_path / name).write_text(name)
    atlas = Atlas("Tiny", tmp_path / "atlas", None, tmp_path / "labels", True, "uri")
    scans = [SimpleNamespace(name=name, image=tmp_path / name, labels=tmp_path / "labels") for name in ("good", "gone")]
    fixed, labels = contents_digest(atlas.image), contents_digest(atlas.labels)
    row = dict.fromkeys(TEXTS, "n/a") | {"method": "affine", "status": "done", "structures_all": 1, "hd95_mm_all": 2}
    row |= {"fixed_digest": fixed, "fixed_labels_digest": labels, "moving_labels_digest": labels}
    row |= {"dice_all": 0.1234567890123456789, "moving_digest": contents_digest(tmp_path / "good")}
    pd.DataFrame([row | {"case": name} for name in ("good", "gone")]).to_csv(
        tmp_path / "cases.tsv", sep="\t", index=False
    )
    found = read_earlier(tmp_path / "cases.tsv", scans, atlas)
    assert found.of("affine") == {"good"} and found.cases["dice_all"].item() == 0.1234567890123456789
