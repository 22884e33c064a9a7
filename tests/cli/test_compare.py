"""`nio compare` on the tiny dataset: the affine against SyN."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from nio_pydra.cli import nio
from nio_pydra.engines.methods import parse_method
from nio_pydra.engines.names import get_engine


def command(dataset, out: Path, engines: str, *more: str) -> list[str]:
    arguments = dataset.command(out, *more)
    arguments = arguments[: arguments.index("participant")] + arguments[arguments.index("participant") + 1 :]
    where = arguments.index("--engine")
    return ["compare", *arguments[:where], *arguments[where + 2 :], "--engines", engines]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def compared(make_dataset, tmp_path_factory):
    """A comparison of three participants, one of whom has a scan that cannot be read."""
    folder = tmp_path_factory.mktemp("compared")
    dataset = make_dataset(folder, ["sub-01", "sub-02", "sub-03"])
    (dataset.root / "sub-03/anat/sub-03_T1w.nii.gz").write_bytes(b"")
    status = nio.main(command(dataset, folder / "out", "affine,syn:fast?iterations=[10,0]"))
    return dataset, folder / "out", status


SYN = "syn:fast?iterations=[10,0]"


def test_every_method_has_done_every_scan_that_can_be_read_and_failures_are_counted(compared):
    _, out, status = compared
    assert status == 1
    cases = {(row["method"], row["case"]): row for row in rows(out / "cases.tsv")}
    assert len(cases) == 6
    for method in ("affine", SYN):
        assert [cases[method, f"sub-0{n}"]["status"] for n in (1, 2, 3)] == ["done", "done", "failed"]
        assert "is empty (0 bytes)" in cases[method, "sub-03"]["reason"]
    assert json.loads(cases[SYN, "sub-01"]["settings"])["iterations"] == [10, 0]
    assert {row["method"]: row["done"] for row in rows(out / "summary.tsv")} == {"affine": "2", SYN: "2"}


def test_methods_share_masks_and_the_affine(compared):
    _, out, _ = compared
    work = out.parent / "work" / "nio_pydra" / "pydra"
    assert len(list(work.glob("*/affine_record.json"))) == 2  # one for each scan, not for each method
    seconds = {(row["method"], row["case"]): row["affine_seconds"] for row in rows(out / "cases.tsv")}
    assert seconds["affine", "sub-01"] == seconds[SYN, "sub-01"]


def test_no_figures_are_drawn_of_single_scans(compared):
    _, out, _ = compared
    assert list(out.rglob("sub-*_xfm.h5"))
    assert not [*out.rglob("sub-*.html"), *out.rglob("*.svg"), *out.parent.glob("work/**/*.svg")]


def test_the_page_and_the_tables_name_every_method(compared):
    _, out, _ = compared
    for name in ("index.html", "summary.md"):
        text = (out / name).read_text()
        assert "affine" in text and "syn:fast" in text and "sub-03" in text
    assert len(list((out / "figures").glob("*.png"))) >= 3


def test_each_method_has_a_derivative_dataset(compared, bids_errors):
    _, out, _ = compared
    for folder in ("affine", "syn-fast-iterations=-10-0-"):
        assert bids_errors(out / folder) == []


def test_a_comparison_goes_on_from_what_is_done(compared, capsys):
    dataset, out, _ = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*_xfm.h5")}
    assert nio.main(command(dataset, out, f"affine,{SYN}")) == 1
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*_xfm.h5")} == before
    said = capsys.readouterr().out
    assert "sub-01: started" not in said and "sub-03: started" in said


def test_tables_are_written_anew_without_registering(compared):
    dataset, out, _ = compared
    (out / "index.html").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("dataset_description.json")}
    assert nio.main(command(dataset, out, SYN, "--tables-only")) == 0
    assert {row["method"] for row in rows(out / "summary.tsv")} == {SYN}
    assert (out / "index.html").exists() and len(before) == 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("dataset_description.json")} == before


def test_results_of_a_program_that_is_gone_stay_in_the_tables(compared, monkeypatch, capsys):
    dataset, out, _ = compared
    assert nio.main(command(dataset, out, f"affine,{SYN}", "--tables-only")) == 0
    before = rows(out / "cases.tsv"), rows(out / "summary.tsv")
    description = next(out.glob("syn*/dataset_description.json"))
    made = description.stat().st_mtime_ns
    monkeypatch.setattr(type(get_engine("syn")), "available", lambda self: "ANTs is not installed")
    for more, status in (([], 1), (["--tables-only"], 0)):  # one scan cannot be read
        assert nio.main(command(dataset, out, f"affine,{SYN}", *more)) == status
        assert (rows(out / "cases.tsv"), rows(out / "summary.tsv")) == before
        assert f"Not run where these tables were written: {SYN}." in (out / "index.html").read_text()
    shown = capsys.readouterr()
    assert f"{SYN} is not run, only its earlier results are shown: ANTs is not installed" in shown.out + shown.err
    assert description.stat().st_mtime_ns == made  # it tells only of runs that happened
    (out / "index.html").unlink()
    assert nio.main(command(dataset, out, SYN)) == 0  # there is nothing to run
    assert {row["method"] for row in rows(out / "cases.tsv")} == {SYN} and (out / "index.html").is_file()


def test_cases_of_another_run_are_taken_over_and_not_run_again(compared, tmp_path, capsys):
    dataset, out, _ = compared
    assert nio.main(command(dataset, out, f"affine,{SYN}", "--tables-only")) == 0
    words = command(dataset, tmp_path / "out", f"affine,{SYN}", "--earlier", str(out / "cases.tsv"))
    assert nio.main(words) == 1
    said = capsys.readouterr().out
    assert "sub-01: started" not in said and "sub-03: started" in said  # which could not be read
    assert not list((tmp_path / "out").rglob("*_xfm.h5"))
    assert rows(tmp_path / "out/cases.tsv") == rows(out / "cases.tsv")
    assert rows(tmp_path / "out/summary.tsv") == rows(out / "summary.tsv")
    assert rows(tmp_path / "out/labels.tsv") == rows(out / "labels.tsv")
    assert "| Taken over from another run | 4 cases |" in (tmp_path / "out/summary.md").read_text()


def test_the_table_of_another_run_serves_without_its_labels(compared, tmp_path):
    dataset, out, _ = compared
    assert nio.main(command(dataset, out, f"affine,{SYN}", "--tables-only")) == 0
    header, *lines = (out / "cases.tsv").read_text().splitlines()
    (tmp_path / "cases.tsv").write_text("\n".join([header, *lines, *lines]) + "\n")  # as two tables joined
    words = command(dataset, tmp_path / "out", SYN, "--earlier", str(tmp_path / "cases.tsv"), "--tables-only")
    assert nio.main(words) == 0
    summary = {(row["method"], row["group"]): row["dice_mean"] for row in rows(out / "summary.tsv")}
    taken = {(row["method"], row["group"]): row["dice_mean"] for row in rows(tmp_path / "out/summary.tsv")}
    assert taken == {key: value for key, value in summary.items() if key[0] == SYN}


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("moving_digest", "0" * 12, "cases.tsv (earlier cases) holds no case of these scans to "),
        ("fixed_digest", "0" * 12, "cases.tsv (earlier cases) holds no case of these scans to "),
        ("moving_labels_digest", "n/a", "cases.tsv (earlier cases) holds no case of these scans to "),
        ("dice_all", "much", "cases.tsv (earlier cases), column dice_all: expected numbers, or n/a."),
        ("versions", "{", "cases.tsv (earlier cases), column versions: expected JSON, or n/a."),
        ("settings", '{"iterations": [99]}', f"2 earlier cases of {SYN} are left out: they were made with other"),
        ("settings", "broken", f"2 earlier cases of {SYN} are left out: they were made with other"),
        ("settings", None, "cases.tsv (earlier cases) has no column settings: expected cases.tsv of `nio compare`"),
    ],
)
def test_cases_of_other_images_or_settings_are_not_taken_over(compared, tmp_path, capsys, column, value, sentence):
    dataset, out, _ = compared
    assert nio.main(command(dataset, out, SYN, "--tables-only")) == 0
    with (tmp_path / "cases.tsv").open("w", newline="") as file:
        own = [{**row, column: value} for row in rows(out / "cases.tsv")]
        names = [name for name in own[0] if name != column or value is not None]
        writer = csv.DictWriter(file, names, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(own)
    words = command(dataset, tmp_path / "out", SYN, "--earlier", str(tmp_path / "cases.tsv"), "--tables-only")
    assert nio.main(words) == 1
    said = capsys.readouterr()
    assert sentence in said.out + said.err and "Traceback" not in said.err


def test_earlier_cases_that_are_absent_are_one_sentence(dataset, tmp_path, capsys):
    assert nio.main(command(dataset, tmp_path / "out", "affine", "--earlier", str(tmp_path / "none.tsv"))) == 1
    said = capsys.readouterr().err
    assert "none.tsv (earlier cases) cannot be read" in said and said.count("\n") == 1


def test_earlier_cases_are_shown_where_their_weights_are_gone(compared, tmp_path, capsys):
    dataset, out, _ = compared
    assert nio.main(command(dataset, out, "affine", "--tables-only")) == 0
    method = f"lapirn@{tmp_path / 'gone.safetensors'}"
    settings = json.dumps(parse_method(method).record()["settings"])
    known = {"method": method, "engine": "lapirn", "preset": "paper", "settings": settings, "weights_sha256": "ab" * 32}
    known |= {"weights": "gone.safetensors", "training_data": "cats"}
    with (tmp_path / "cases.tsv").open("w", newline="") as file:
        own = [{**row, **known} for row in rows(out / "cases.tsv")]
        writer = csv.DictWriter(file, list(own[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(own)
    words = command(dataset, tmp_path / "out", method, "--earlier", str(tmp_path / "cases.tsv"), "--tables-only")
    assert nio.main(words) == 0
    assert "cats (gone.safetensors)" in (tmp_path / "out/index.html").read_text()
    said = capsys.readouterr()
    assert "is not run, only its earlier results are shown: " in said.out + said.err


def test_a_program_that_is_gone_and_did_nothing_to_this_atlas_is_left_out(compared, monkeypatch, capsys):
    dataset, out, _ = compared
    monkeypatch.setattr(type(get_engine("syn")), "available", lambda self: "ANTs is not installed")
    words = command(dataset, out, f"affine,{SYN}", "--atlas-name", "Other")
    assert nio.main([*words, "--tables-only"]) == 1
    assert "holds no case of affine to" in capsys.readouterr().err


def test_tables_of_nothing_are_refused(dataset, tmp_path, capsys):
    assert nio.main(command(dataset, tmp_path / "out", "affine,lapirn", "--tables-only")) == 1
    said = capsys.readouterr().err
    assert "out holds no case of affine, lapirn to " in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("engines", "more", "sentence"),
    [
        ("magic", [], "There is no engine magic"),
        ("", [], r"There is no method to compare: --engines names none"),
        ("affine:slow", [], "has no preset slow"),
        ("syn,affine,syn:fast", [], "syn:fast and syn are the same method"),
        (
            "affine",
            ["--reference", "syn"],
            "--reference syn is none of the methods that can be run or shown here: choose one of affine",
        ),
        ("syn?iterations=[9,0],syn?iterations=[9, 0]", [], r"syn\?iterations=.* are the same method"),
        ("affine", ["--label-names", "absent.tsv"], "absent.tsv .names of labels. cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(dataset, tmp_path, capsys, engines, more, sentence):
    import re

    assert nio.main(command(dataset, tmp_path / "out", engines, *more)) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"nio compare: error: .*{sentence}.*\n", said)
    assert not (tmp_path / "out").exists()


def test_labels_that_share_nothing_are_refused(dataset, tmp_path, capsys, write_image):
    import nibabel as nib
    import numpy as np

    labels = nib.load(dataset.atlas_labels)
    others = np.where(labels.get_fdata() > 0, labels.get_fdata() + 50, 0).astype(np.int16)
    write_image(others, dataset.atlas_labels, labels.affine)
    assert nio.main(command(dataset, tmp_path / "out", "affine")) == 1
    assert "have no label in common: expected labels of one scheme" in capsys.readouterr().err


def test_scans_without_labels_are_refused(dataset, tmp_path, capsys):
    shutil.rmtree(dataset.derivatives / "sub-01")
    shutil.rmtree(dataset.derivatives / "sub-02")
    assert nio.main(command(dataset, tmp_path / "out", "affine")) == 1
    assert "No scan has a label image desc-malf_dseg in the derivatives" in capsys.readouterr().err


def test_scans_without_labels_and_the_atlas_itself_are_no_cases(dataset, tmp_path, capsys):
    (dataset.derivatives / "sub-02/anat/sub-02_desc-malf_dseg.nii.gz").unlink()
    dataset.add("sub-03", 6.0)
    atlas = ("--atlas", str(dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"))
    atlas += ("--atlas-labels", str(dataset.derivatives / "sub-01/anat/sub-01_desc-malf_dseg.nii.gz"))
    assert nio.main(command(dataset, tmp_path / "out", "affine", *atlas)) == 0
    assert [row["case"] for row in rows(tmp_path / "out/cases.tsv")] == ["sub-03"]
    assert "Scans without labels are left out: sub-02" in capsys.readouterr().out


def test_a_method_that_is_not_installed_is_left_out_with_the_line_that_says_how_to_get_it(
    dataset, tmp_path, capsys, monkeypatch
):
    from nio_pydra.engines import greedy

    monkeypatch.setattr(greedy, "find_spec", lambda name: None)
    assert nio.main(command(dataset, tmp_path / "out", "affine,greedy", "--participant-label", "01")) == 0
    assert "greedy is left out: picsl-greedy is not installed" in capsys.readouterr().out
    assert "pip install picsl-greedy" in (tmp_path / "out/summary.md").read_text()


def test_a_method_whose_folder_would_have_too_long_a_name_is_refused(dataset, tmp_path, capsys):
    from nio_pydra.networks.checkpoints import default_weights

    folder = tmp_path.joinpath(*["d" * 90] * 3)
    folder.mkdir(parents=True)
    weights = shutil.copy(default_weights(), folder / "weights.safetensors")
    assert nio.main(command(dataset, tmp_path / "out", f"affine,lapirn@{weights}")) == 1
    assert "characters: expected at most 255" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_methods_never_share_a_folder(tmp_path):
    from nio_pydra.comparison.scope import require_own_folders
    from nio_pydra.errors import InputError

    require_own_folders(tmp_path, ["lapirn@a/b.pth", "lapirn@a/c.pth"])
    with pytest.raises(InputError, match=r"would both be written to .*: leave one out"):
        require_own_folders(tmp_path, ["lapirn@a/b.pth", "lapirn@a-b.pth"])


def test_a_method_that_memory_does_not_hold_does_not_stop_the_others(dataset, tmp_path, capsys, monkeypatch):
    from nio_pydra.engines import memory

    monkeypatch.setattr(memory, "machine_memory_mb", lambda: 500.0)
    engines = "lapirn,affine"
    assert nio.main(command(dataset, tmp_path / "out", engines, "--nprocs", "2", "--worker", "cf")) == 1
    assert "lapirn cannot be run: " in capsys.readouterr().out
    (dataset.root / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"")
    assert nio.main(command(dataset, tmp_path / "stopped", "affine,syn", "--stop-on-first-crash")) == 1
    assert {row["method"] for row in rows(tmp_path / "stopped/cases.tsv")} == {"affine"}
    assert {row["method"] for row in rows(tmp_path / "out/cases.tsv")} == {"affine"}
