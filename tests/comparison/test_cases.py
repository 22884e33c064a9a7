"""Cases of a comparison, from records to tables, and their statistics against known values."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from nio_pydra.comparison.cases import gather_cases
from nio_pydra.comparison.statistics import compare_with, group_names, mark, summarise
from nio_pydra.comparison.structures import Structures, read_structures
from nio_pydra.errors import InputError

TINY = {"space": "Tiny"}


def _record(overlap: dict[str, float], **more) -> str:
    return json.dumps(
        {
            "engine": "lapirn",
            "preset": "paper",
            "dice": {"mean": 0, "labels": overlap},
            "hd95_mm": {"mean": 0, "labels": {label: 2.0 for label in overlap if label != "17"}},
            "seconds": {"registration": 3.5, "registration_processor": 6.0, "affine": 9.0},
            "before_unfolding": {"fold_percent": 0.4},
            "versions": {"torch": "2"},
            **more,
        }
    )


def _derivatives(folder: Path, records: dict[str, str], errors: dict[str, str] | None = None) -> Path:
    for name, text in records.items():
        path = folder / name.split("_")[0] / "anat" / f"{name}_space-Tiny_desc-lapirn_record.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name, reason in (errors or {}).items():
        path = folder / "logs" / f"{name}_space-Tiny_desc-lapirn_error.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"engine": "lapirn", "reason": reason}))
    return folder


def test_cases_and_labels_are_read_from_records_and_failures_are_counted(tmp_path):
    one = _derivatives(
        tmp_path / "one",
        {"sub-1_ses-a": _record({"17": 0.8, "101": 0.5, "1002": 0.3}), "sub-9": _record({"17": 0.1})},
        {"sub-2": "it lies beside the atlas"},
    )
    cases, labels = gather_cases(
        {"one": one, "two": tmp_path / "absent"},
        ["sub-1_ses-a", "sub-2", "sub-3"],
        Structures({17: "Hippocampus"}),
        TINY,
    )
    assert list(cases["case"]) == ["sub-1_ses-a", "sub-2"]  # sub-9 is not of this comparison, sub-3 not done
    done = cases.iloc[0]
    assert done["participant"] == "sub-1" and done["status"] == "done"
    assert done["dice_all"] == pytest.approx(1.6 / 3)
    assert done["dice_subcortical"] == 0.8 and done["dice_cortical"] == pytest.approx(0.4)
    assert np.isnan(done["hd95_mm_subcortical"]) and done["hd95_mm_all"] == 2.0
    assert (done["seconds"], done["processor_seconds"], done["fold_percent_raw"]) == (3.5, 6.0, 0.4)
    assert json.loads(done["versions"]) == {"torch": "2"}
    assert cases.iloc[1]["status"] == "failed" and cases.iloc[1]["reason"] == "it lies beside the atlas"
    assert list(labels["name"]) == ["Hippocampus", "101", "1002"]
    assert group_names(cases) == ["all", "cortical", "subcortical"]


def test_a_scan_that_failed_in_the_latest_run_is_not_shown_by_its_earlier_record(tmp_path):
    folder = _derivatives(tmp_path / "one", {"sub-1": _record({"17": 0.8})}, {"sub-1": "no more"})
    assert list(gather_cases({"one": folder}, ["sub-1"], Structures(), TINY)[0]["status"]) == ["failed"]


def test_results_for_another_atlas_in_the_same_folder_are_left_out(tmp_path):
    folder = _derivatives(tmp_path, {"sub-1": _record({"17": 0.8})}, {"sub-2": "no"})
    for path in [*tmp_path.rglob("*_record.json"), *tmp_path.rglob("*_error.json")]:
        for space in ("Zoo", "Tiny_cohort-1", "Tiny_res-2"):  # sorted after the atlas's own
            other = path.with_name(path.name.replace("Tiny", space))
            other.write_text(path.read_text().replace("0.8", "0.1").replace('"no"', '"other"'))
    cases, _ = gather_cases({"one": folder}, ["sub-1", "sub-2"], Structures(), TINY)
    assert cases.loc[0, "dice_all"] == 0.8 and cases.loc[1, "reason"] == "no"
    assert gather_cases({"one": folder}, ["sub-1"], Structures(), {"space": "Zoo"})[0].loc[0, "dice_all"] == 0.1
    assert gather_cases({"one": folder}, ["sub-1"], Structures(), {"space": "Absent"})[0].empty


def test_groups_of_labels_follow_the_schemes_unless_the_table_says_otherwise(tmp_path):
    table = tmp_path / "dseg.tsv"
    table.write_text("index\tname\tgroup\n4\tLateral Ventricle\tventricle\n100\tgyrus\tn/a\n")
    structures = read_structures(table)
    assert structures.names == {4: "Lateral Ventricle", 100: "gyrus"}
    found = [structures.group(label) for label in (4, 17, 3, 42, 100, 207, 251, 1028, 12175, 3028, 5002)]
    assert found == [
        "ventricle",
        "subcortical",
        *["cortical"] * 4,
        "subcortical",
        "cortical",
        "cortical",
        *["subcortical"] * 2,
    ]
    table.write_text("\ufeffindex\tname\n4\n5\tPutamen\n")  # as a spreadsheet writes it, a row without a name
    assert read_structures(table).names == {4: "4", 5: "Putamen"}
    for text, sentence in (
        ("a\tb\n1\t2\n", "expected index and name"),
        ("index\tname\nx\ty\n", "whole numbers"),
        ("name\tindex\nx\n", "whole numbers"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=sentence):
            read_structures(table)


@pytest.fixture
def cases() -> pd.DataFrame:
    """Twelve participants of two scans each: `good` is better by 0.02 on average, `same` equals the reference."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 0.8, 24)
    values = {"best": truth + rng.normal(0.02, 0.01, 24), "other": truth, "same": None}
    values["same"] = values["best"]
    return pd.DataFrame(
        [
            {
                "method": method,
                "case": f"sub-{i // 2}_ses-{i % 2}",
                "status": "done",
                "dice_all": overlap[i],
                "seconds": 10.0 + i,
                "fold_percent_raw": None,
            }
            for method, overlap in values.items()
            for i in range(24)
        ]
    )


def test_the_summary_has_the_papers_dsc30_and_that_of_learn2reg(cases):
    summary = summarise(cases, ["all"]).set_index("method")
    overlap = np.sort(cases[cases["method"] == "other"]["dice_all"])
    other = summary.loc["other"]
    assert other["dsc30"] == pytest.approx(overlap[:7].mean())
    assert other["dsc30_learn2reg"] == pytest.approx(np.percentile(overlap, 30))
    assert other["dice_sd"] == pytest.approx(overlap.std(ddof=1)) and other["seconds_mean"] == 21.5
    assert np.isnan(other["fold_percent_raw_mean"]) and other["done"] == 24


def test_methods_are_tested_by_pairs_with_holms_correction(cases):
    third = cases[cases["method"] == "other"].assign(method="third", dice_all=lambda table: table["dice_all"] - 0.001)
    tests = compare_with(pd.concat([cases, third]), "best", ["all"]).set_index("method")
    best, other = (cases[cases["method"] == name]["dice_all"].to_numpy() for name in ("best", "other"))
    means = (best - other).reshape(12, 2).mean(axis=1)  # of a participant's two scans
    p = wilcoxon(means).pvalue
    assert tests.loc["other", "p"] == pytest.approx(p)
    smaller, larger = sorted(tests.loc[["other", "third"], "p"])
    assert sorted(tests.loc[["other", "third"], "p_holm"]) == pytest.approx(
        sorted([2 * smaller, max(2 * smaller, larger)])
    )
    assert tests.loc["other", "difference"] == pytest.approx((best - other).mean())
    assert tests.loc["other", "low"] < tests.loc["other", "difference"] < tests.loc["other", "high"]
    assert 0.5 < tests.loc["other", "effect"] <= 1
    same = tests.loc["same"]
    assert same["difference"] == 0 and np.isnan(same["p"]) and np.isnan(same["p_holm"])


def test_participants_count_and_not_their_scans(cases):
    """Ten copies of every scan must neither make the interval narrower nor p smaller."""
    copies = pd.concat([cases.assign(case=cases["case"] + f"_run-{i}") for i in range(10)])
    one, ten = (compare_with(table, "best", ["all"]).set_index("method").loc["other"] for table in (cases, copies))
    assert ten["pairs"] == 10 * one["pairs"] and ten["participants"] == one["participants"] == 12
    assert (ten["p"], ten["effect"]) == (one["p"], one["effect"])
    assert ten["high"] - ten["low"] == pytest.approx(one["high"] - one["low"], rel=1e-6)


def test_one_case_gives_no_statistics_and_missing_cases_are_left_out(cases):
    alone = compare_with(cases[cases["case"] == "sub-0_ses-0"], "best", ["all"]).iloc[0]
    assert alone["pairs"] == 1 and np.isfinite(alone["difference"])
    assert np.isnan([alone["p"], alone["effect"], alone["low"]]).all()
    fewer = cases.drop(cases.index[(cases["method"] == "other") & (cases["case"] == "sub-3_ses-1")])
    assert compare_with(fewer, "best", ["all"]).set_index("method").loc["other", "pairs"] == 23


@pytest.mark.parametrize(("p", "sign"), [(0.0005, "†"), (0.02, "*"), (0.05, ""), (float("nan"), "")])
def test_marks_are_those_of_the_paper(p, sign):
    assert mark(p) == sign
