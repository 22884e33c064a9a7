"""Pages of the BIDS App: of participants and of all of them, offline, with a scan that failed, and the methods text."""

import csv
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from nio_pydra.cli import bids_app

NAME = "space-Tiny_desc-affine"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_dataset, write_image):
    """Output of a run with a scan that fails, and of the group level."""
    folder = tmp_path_factory.mktemp("reports")
    dataset = make_dataset(folder, ["sub-01", "sub-02_ses-a"])
    write_image(np.zeros((8, 8, 8), np.float32), dataset.root / "sub-03/anat/sub-03_T1w.nii.gz")
    out = folder / "out"
    assert bids_app.main(dataset.command(out)) == 1
    assert bids_app.main([str(dataset.root), str(out), "group"]) == 0
    return dataset, out


def pages(out: Path) -> list[Path]:
    return sorted(out.glob("*.html"))


def test_there_is_a_page_for_each_participant_and_one_for_all(finished):
    names = [path.name for path in pages(finished[1])]
    assert names == ["group_desc-affine_registration.html", "sub-01.html", "sub-02.html", "sub-03.html"]


def test_pages_and_figures_load_nothing_from_elsewhere_and_their_links_lead_somewhere(finished):
    _, out = finished
    for path in [*pages(out), *out.rglob("*.svg")]:
        text = path.read_text()
        loading = re.findall(r'<(?:img|object|image|script|iframe|link|source)[^>]*?(?:src|data|href)="([^"]*)"', text)
        assert not [target for target in loading if ":" in target and not target.startswith("data:image/")]
        assert not re.search(r"@import|url\(|<script|<link|<base", text)
        for target in re.findall(r'(?:src|data|href)="([^"]*)"', text):
            if target.startswith("data:"):
                continue
            file, _, anchor = unquote(target).partition("#")
            linked = out / file if file else path
            assert linked.is_file(), target
            assert not anchor or f'id="{anchor}"' in linked.read_text(), target


def test_participant_page_shows_figures_measures_record_and_methods(finished):
    _, out = finished
    text = (out / "sub-02.html").read_text()
    for kind in ("registration", "mask", "labels"):
        assert f'data="sub-02/figures/sub-02_ses-a_{NAME}_{kind}.svg"' in text
    assert ">pass<" in text and ">fail<" not in text
    assert "overlap of masks" in text and "versions.nio_pydra" in text and "seconds.affine" in text
    assert "An affine that maximises mutual information was computed by ANTs" in text


def test_scan_that_failed_has_a_page_with_its_error(finished):
    text = (finished[1] / "sub-03.html").read_text()
    assert ">fail<" in text and ">pass<" not in text
    assert "sub-03_T1w.nii.gz" in text and "This scan failed" in text
    assert "Traceback" in text and "versions:" in text, "the whole report is shown"
    for methods in (text, (finished[1] / "logs/CITATION.md").read_text()):
        assert "2 scans (T1w) of 2 participants" in methods
        assert "1 further scan could not be aligned to the atlas." in methods


def test_group_page_names_and_links_the_scan_that_failed_and_plots_the_others(finished):
    _, out = finished
    text = (out / "group_desc-affine_registration.html").read_text()
    assert re.search(rf'href="sub-03\.html#sub-03_{NAME}">sub-03</a>\s*<span class="verdict fail">fail', text)
    assert len(re.findall(r"<circle", text)) == 7 * 2
    assert re.search(rf'<a href="sub-01\.html#sub-01_{NAME}"><circle[^>]*><title>sub-01: 0\.\d+ \(pass\)', text)


def test_group_table_holds_the_verdicts(finished):
    with (finished[1] / "group_desc-affine_registration.tsv").open() as stream:
        rows = {row["participant_id"]: row for row in csv.DictReader(stream, delimiter="\t")}
    assert [rows[f"sub-0{number}"]["qc"] for number in (1, 2, 3)] == ["pass", "pass", "fail"]
    assert rows["sub-03"]["qc_reason"] == rows["sub-03"]["reason"] != "n/a"
    assert float(rows["sub-01"]["mask_overlap"]) > 0.9
    assert 0.8 < float(rows["sub-01"]["affine_scale_smallest"]) <= float(rows["sub-01"]["affine_scale_largest"]) < 1.2


def test_a_scan_that_stands_out_is_shown_with_its_picture(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[1], out)
    record = out / f"sub-01/anat/sub-01_{NAME}_record.json"
    record.write_text(re.sub(r'"mask_overlap": [\d.]+', '"mask_overlap": 0.5', record.read_text()))
    assert bids_app.main([str(finished[0].root), str(out), "group"]) == 0
    text = (out / "group_desc-affine_registration.html").read_text()
    assert re.search(rf'overlap of masks 0\.5, expected at least [^<]*</figcaption>\s*<a [^>]*><img [^>]*src="'
                     rf"sub-01/figures/sub-01_{NAME}_registration\.svg", text)  # fmt: skip
    assert ">fail<" in (out / "sub-01.html").read_text(), "the group level brings the participants' pages up to date"


def test_outputs_with_pages_pass_the_bids_validator(finished, bids_errors, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[1], out)
    assert bids_errors(out) == []


def test_reports_only_writes_pages_again_and_computes_nothing(finished, tmp_path, capsys):
    dataset, out = finished
    before = {path: path.read_bytes() for path in pages(out)}
    (out / "sub-01.html").unlink()
    (out / "sub-02.html").write_text("old")
    # Without an atlas, and of any engine: the default one is not that of the results.
    command = [str(dataset.root), str(out), "participant", "-w", str(tmp_path / "empty"), "--reports-only"]
    assert bids_app.main(command) == 0
    assert capsys.readouterr().out.count(".html") == 3
    assert {path: path.read_bytes() for path in pages(out)} == before
    assert not any((tmp_path / "empty").rglob("*.h5"))
    (out / "sub-02.html").write_text("old")
    assert bids_app.main([*command, "--participant-label", "01"]) == 0
    assert (out / "sub-02.html").read_text() == "old"
    citation = out / "logs/CITATION.md"
    written = citation.read_bytes()
    citation.write_bytes(written + "Zürich".encode("latin-1"))
    assert bids_app.main([*command, "--participant-label", "02"]) == 0
    assert "rich" in (out / "sub-02.html").read_text(), (
        "a text that was edited, not in UTF-8, is shown as well as can be"
    )
    citation.write_bytes(written)
    (out / "sub-02.html").write_bytes(before[out / "sub-02.html"])


def test_reports_only_before_any_run_says_what_to_do(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert bids_app.main(dataset.command(out, "--reports-only")) == 1
    assert "run it without --reports-only first" in capsys.readouterr().err
    assert not out.exists()


def test_boilerplate_only_writes_the_text_and_registers_nothing(dataset, tmp_path):
    out = tmp_path / "out"
    assert bids_app.main(dataset.command(out, "--engine", "lapirn", "--boilerplate-only")) == 0
    assert "LapIRN, the network alone (Mok and Chung 2020)" in (out / "logs/CITATION.md").read_text()
    assert "@article{mok2020," in (out / "logs/CITATION.bib").read_text()
    assert not list(out.glob("sub-*"))


def test_another_run_leaves_figures_and_pages_as_they_are(finished):
    dataset, out = finished
    # The page of sub-03 holds the time at which its scan failed.
    before = {path: path.stat().st_mtime_ns for path in [*out.glob("sub-0[12].html"), *out.rglob("*.svg")]}
    assert len(before) == 8
    assert bids_app.main(dataset.command(out)) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
