"""Tables and the page of a comparison: every number and method in them, nothing from elsewhere."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from nio_pydra.comparison import paper
from nio_pydra.comparison.figures import Picture, write_figures
from nio_pydra.comparison.page import write_page
from nio_pydra.comparison.tables import (
    FOOTNOTES,
    Table,
    cautions,
    facts_table,
    markdown,
    scores_table,
    statistics_table,
)

EMPTY = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Cells of all tables, and what is loaded; complains where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.loaded, self.rows, self.tags, self.shown = [], [], [], set(), ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.shown += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def _page(results, tmp_path, pictures=()) -> tuple[str, Page]:
    text = write_page(results, pictures, tmp_path / "page.html").read_text(encoding="utf-8")
    return text, Page(text)


def _texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_the_page_needs_nothing_but_itself(with_images, tmp_path):
    pictures = write_figures(with_images, tmp_path / "figures")
    text, page = _page(with_images, tmp_path, pictures)
    assert text.startswith("<!DOCTYPE html>") and not page.tags & {"script", "link", "iframe"}
    assert not re.search(r"url\(|@import|https?://", text)
    held = [value for value in page.loaded if not value.startswith("#")]
    assert [base64.b64decode(value.removeprefix("data:image/png;base64,")) for value in held] == [
        picture.path.read_bytes() for picture in pictures
    ]
    for picture in pictures:
        assert picture.caption in page.shown


def test_the_page_holds_every_method_case_and_measure(make_results, tmp_path):
    results = make_results()
    _, page = _page(results, tmp_path)
    cells = {cell for row in page.rows for cell in row}
    assert set(results.methods) <= cells
    assert {method.citation for method in results.methods.values()} <= cells
    assert ["absent", "left out: it is not installed: pip install absent."] in page.rows
    assert ["network", "sub-08", "no <b>memory</b> | left"] in page.rows  # shown, not obeyed
    assert ["Processor", "abacus"] in page.rows and ["Versions", "torch 2.13"] in page.rows
    assert ["Command", "nio compare IN OUT"] in page.rows
    for text in (*FOOTNOTES.values(), *cautions(results), *results.scans, '{"weight": 0.4}', paper.CITATION):
        assert text in page.shown
    assert [list(row) for row in paper.ROWS] == page.rows[-len(paper.ROWS) :]


def test_numbers_on_the_page_are_those_of_the_tables(make_results, tmp_path):
    results = make_results()
    _, page = _page(results, tmp_path)
    row = next(row for row in page.rows if row[0] == "network" and len(row) == 12)
    summary = results.summary.loc[("network", "all")]
    known = [0.5 * (1 + 0.02 * number) for number in range(6)]
    assert row[1].rstrip("*") == f"{np.mean(known):.3f} ± {np.std(known, ddof=1):.3f}"
    assert row[2:4] == [f"{summary['dsc30']:.3f}", f"{summary['dsc30_learn2reg']:.3f}"]
    assert row[4:9] == ["–", "0.600 ± 0.000", "0.250 / 0.000", "0.050", "22.5 ± 1.9"]
    assert row[9:] == ["35.0", "6 of 8, 1 failed, 1 not done", "cats (some.pth)"]
    for group in results.groups:
        for table in (scores_table(results, group), statistics_table(results, group)):
            assert all(texts in page.rows for texts in _texts(table))


def test_the_best_number_of_a_column_is_bold_and_methods_that_do_not_deform_have_none(make_results):
    results = make_results()
    table = scores_table(results)
    best = {heading: set() for heading in table.columns}
    for row in table.rows:
        for heading, cell in zip(table.columns, row, strict=False):
            if cell.best:
                best[heading].add(row[0].text)
    assert best["Dice ↑"] == best["DSC30 ↑"] == {"best"}
    assert best["std|J| ↓"] == {"smooth?weight=2"}
    assert best["round trip (mm) ↓"] == set()  # all the same
    affine = _texts(table)[0]
    assert affine[5:10] == ["–"] * 5
    text = markdown(results)
    assert "| best | **0.696 ± 0.032** |" in text


def test_numbers_that_look_the_same_are_equally_good(make_results):
    results = make_results()
    nearly = results.cases.copy()
    nearly.loc[nearly["method"] == "affine", "dice_all"] = (
        nearly.loc[nearly["method"] == "best", "dice_all"].to_numpy() + 1e-6
    )
    rows = scores_table(replace(results, cases=nearly)).rows
    assert [row[0].text for row in rows if row[1].best] == ["affine", "best"]


def test_signs_of_the_paper_stand_behind_what_differs(make_results):
    many = [f"sub-{number:02}" for number in range(1, 15)]
    results = make_results(many)
    dice = {row[0]: row[1] for row in _texts(scores_table(results)) if len(row) > 2}
    assert dice["affine"].endswith("†") and not dice["best"].endswith(("†", "*"))
    # Six methods, and 2 / 2^9 is the smallest p of nine pairs: 0.023 with Holm's correction.
    dice = {row[0]: row[1] for row in _texts(scores_table(make_results(many[:9]))) if len(row) > 2}
    assert dice["affine"].endswith("*")
    table = statistics_table(results)
    affine = dict(zip(table.columns, _texts(table)[0], strict=True))
    assert (
        affine["difference"] == "+0.2825"
        and affine["effect"] == "+1.00"
        and affine["pairs (participants)"] == "14 (14)"
    )


def test_a_correction_that_nothing_can_pass_is_said(make_results):
    """Two participants give p = 0.5 at the least."""
    found = cautions(make_results(["sub-01", "sub-02"]))
    assert (
        "With 2 participants and 6 methods tested, the smallest p" in found[0]
        and "* and † are out of reach" in found[0]
    )
    assert "† is out of reach" in cautions(make_results())[0]
    assert not [text for text in cautions(make_results([f"sub-{n:02}" for n in range(1, 20)])) if "reach" in text]


def test_one_case_leaves_statistics_out_and_says_so(make_results, tmp_path):
    results = make_results(["sub-01"])
    assert statistics_table(results) is None
    text, page = _page(results, tmp_path)
    for shown in (page.shown, markdown(results)):
        assert "Statistics are left out: one case only" in shown
    assert "<h2>Statistics</h2>" not in text and "†" not in {row[1][-1:] for row in page.rows if row[0] == "affine"}
    assert next(row for row in page.rows if row[0] == "best")[1] == "0.650"  # no standard deviation of one


def test_scans_of_one_person_give_no_statistics(make_results):
    results = make_results([f"sub-01_ses-{number}" for number in range(8)])
    assert statistics_table(results) is None
    assert any("no other method has cases of two participants in common" in text for text in cautions(results))


def test_several_scans_of_one_person_are_said(make_results):
    sentence = "Some participants have several cases"
    assert not any(sentence in text for text in cautions(make_results()))
    twice = make_results([f"sub-{number // 2}_ses-{number % 2}" for number in range(8)])
    cases = twice.cases.assign(participant=twice.cases["case"].str.split("_").str[0])
    assert any(sentence in text for text in cautions(replace(twice, cases=cases)))


def test_cases_without_a_common_label_are_said(make_results):
    results = make_results()
    cases = results.cases.copy()
    cases.loc[cases["case"] == "sub-02", "dice_all"] = None
    assert any(
        text.startswith("No label of sub-02 is one of the atlas's") for text in cautions(replace(results, cases=cases))
    )
    assert not any("No label of" in text for text in cautions(results))


def test_a_method_with_fewer_cases_than_others_is_never_the_best(make_results):
    results = make_results()
    dropped = results.cases[results.cases["method"] == "best"].index[0]
    fewer = replace(results, cases=results.cases.drop(dropped))
    assert [row[0].text for row in scores_table(results).rows if row[1].best] == ["best"]
    assert "best" not in [row[0].text for row in scores_table(fewer).rows if row[1].best]


def test_missing_cases_are_said(make_results):
    assert any("network" in text and "fewer cases" in text for text in cautions(make_results()))
    results = make_results()
    kept = results.cases[results.cases["method"] != "affine"]
    assert _texts(scores_table(replace(results, cases=kept)))[0] == ["affine", "no case done (0 of 8, 8 not done)"]


def test_nothing_done_gives_a_page_that_says_so(make_results, tmp_path):
    _, page = _page(make_results(cases=pd.DataFrame(), labels=pd.DataFrame()), tmp_path)
    assert ["best", "no case done (0 of 8, 8 not done)"] in page.rows


def test_markdown_tables_have_as_many_cells_as_columns(make_results):
    text = markdown(make_results())
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 10
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert r"no \<b>memory\</b> \| left" in text


def test_threads_and_devices_that_differ_are_all_named(make_results):
    results = make_results()
    mixed = results.cases.copy()
    mixed.loc[mixed["method"] == "best", ["device", "threads"]] = ["cuda", 4]
    facts = dict(_texts(facts_table(replace(results, cases=mixed))))
    assert facts["Device"] == "cpu, cuda" and facts["Threads"] == "2, 4"
    assert facts["Affine, common to all"] == "9.0 ± 0.0 s"
    said = " ".join(cautions(replace(results, cases=mixed)))
    assert "several numbers of threads (2, 4): times do not compare" in said and "several devices (cpu, cuda)" in said


def test_cases_of_one_method_that_were_made_with_other_settings_are_said(make_results):
    results = make_results()
    assert not any("with the same settings" in text for text in cautions(results))
    mixed = results.cases.copy()
    mixed.loc[mixed.index[mixed["method"] == "best"][0], "settings"] = "{}"
    assert "Not all cases of best were made with the same settings: run them anew." in cautions(
        replace(results, cases=mixed)
    )


def test_a_reference_that_is_no_method_is_refused(make_results):
    with pytest.raises(ValueError, match="the reference other is none of affine"):
        make_results(reference="other")


def test_titles_are_text(make_results, tmp_path):
    picture = tmp_path / "x.png"
    picture.write_bytes(b"png")
    text, page = _page(make_results(title="<i>a</i>"), tmp_path, [Picture(picture, 'a "b"', "<u>c</u>")])
    assert "<i>" not in text and "<u>" not in text and "<i>a</i>" in page.shown and "<u>c</u>" in page.shown
