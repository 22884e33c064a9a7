"""The scans that are found, with their masks and labels."""

import json
import logging
import os
import re

import pytest

from nio_pydra.bids.inputs import find_scans, read_filters
from nio_pydra.errors import InputError


@pytest.fixture
def said(caplog, monkeypatch):
    """Log messages of the search for scans."""
    monkeypatch.setattr(logging.getLogger("nio_pydra"), "propagate", True)  # the app's own handlers may be there
    caplog.set_level("INFO", logger="nio_pydra")
    return caplog


def names(dataset, **options):
    return [scan.name for scan in find_scans(dataset.root, **options)]


def test_every_scan_of_every_session_and_run_is_found_once(dataset):
    dataset.add("sub-03_ses-a_run-1")
    dataset.add("sub-03_ses-a_run-2")
    dataset.add("sub-03_ses-b_acq-fast")
    (dataset.root / "sub-01/anat/sub-01_part-phase_T1w.nii.gz").touch()
    (dataset.root / "sub-01/anat/sub-01_T2w.nii.gz").touch()
    for name in ("sub-01/anat/._sub-01_T1w.nii.gz", "sub-01/anat/._sub-01_T1w.json", "._T1w.json"):
        (dataset.root / name).write_bytes(b"\0\5\x16\7")  # as macOS leaves them beside files
    assert not any(scan.problem for scan in find_scans(dataset.root))
    assert names(dataset) == [
        "sub-01", "sub-02", "sub-03_ses-a_run-1", "sub-03_ses-a_run-2", "sub-03_ses-b_acq-fast",
    ]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "sub-"])
def test_participant_labels_work_with_and_without_prefix(dataset, prefix):
    assert names(dataset, participants=[f"{prefix}02"]) == ["sub-02"]


def test_session_labels_choose_sessions(dataset):
    for session in "ab":
        dataset.add(f"sub-03_ses-{session}")
    assert names(dataset, sessions=["ses-b"]) == ["sub-03_ses-b"]


def test_filter_file_chooses_by_value_and_by_absence(dataset, tmp_path):
    dataset.add("sub-03_acq-fast")
    file = tmp_path / "filter.json"
    file.write_text(json.dumps({"t1w": {"acquisition": "fast"}, "bold": {"task": "rest"}}))
    assert names(dataset, filters=read_filters(file)) == ["sub-03_acq-fast"]
    file.write_text(json.dumps({"t1w": {"acquisition": None}}))
    assert names(dataset, filters=read_filters(file)) == ["sub-01", "sub-02"]


def test_a_value_that_makes_no_sense_is_the_problem_of_its_scan(dataset, tmp_path):
    (dataset.root / "sub-01/anat/sub-01_T1w.json").write_bytes(b"\xef\xbb\xbf" + b'{"SkullStripped": "true"}')
    dataset.add("sub-03_run-a")
    problems = {scan.image.name: scan.problem for scan in find_scans(dataset.root)}
    assert "SkullStripped is 'true' in its sidecar, expected true or false" in problems["sub-01_T1w.nii.gz"]
    assert "a run must be a number" in problems["sub-03_run-a_T1w.nii.gz"]


def test_sidecars_are_inherited_and_the_nearest_one_wins(dataset):
    (dataset.root / "sub-02/anat/sub-02_T1w.json").write_text('{"SkullStripped": false}')
    found = find_scans(dataset.root)
    assert [scan.skull_stripped for scan in found] == [True, False]


@pytest.mark.parametrize("name", ["desc-lesion_mask", "label-lesion_mask", "space-orig_desc-lesion_mask",
                                  "T1w_label-lesion_roi"])  # fmt: skip
def test_lesion_masks_are_found_by_any_of_their_names(dataset, name):
    anat = dataset.derivatives / "sub-02/anat"
    for other in ("space-MNI_desc-lesion_mask", "T2w_desc-lesion_mask", "desc-brain_mask"):
        (anat / f"sub-02_{other}.nii.gz").touch()
    (anat / f"sub-02_{name}.nii.gz").touch()
    found = find_scans(dataset.root, derivatives={"manual": dataset.derivatives})
    assert [scan.lesion and scan.lesion.name for scan in found] == [None, f"sub-02_{name}.nii.gz"]


def test_two_lesion_masks_of_one_scan_are_a_problem_of_that_scan_alone(dataset):
    for name in ("desc-lesion_mask", "label-lesion_roi"):
        (dataset.derivatives / f"sub-02/anat/sub-02_{name}.nii.gz").touch()
    first, second = find_scans(dataset.root, derivatives={"manual": dataset.derivatives})
    assert first.problem == ""
    assert re.fullmatch(
        r"There are 2 files for one scan, where one was expected: keep one of \S+_mask.nii.gz, \S+_roi.nii.gz.",
        second.problem,
    )


def test_masks_and_labels_of_another_run_or_space_are_not_taken(dataset):
    for run in (1, 2):
        dataset.add(f"sub-03_run-{run}")
    anat = dataset.derivatives / "sub-03/anat"
    for name in ("run-2_desc-brain", "run-1_space-MNI_desc-brain", "run-1_desc-head", "desc-brain"):
        (anat / f"sub-03_{name}_mask.nii.gz").touch()
    found = find_scans(
        dataset.root,
        participants=["03"], derivatives={"manual": dataset.derivatives}, labels_desc="malf",
    )  # fmt: skip
    assert [scan.mask and scan.mask.name for scan in found] == [None, "sub-03_run-2_desc-brain_mask.nii.gz"]
    assert [scan.labels.name for scan in found] == [f"sub-03_run-{run}_desc-malf_dseg.nii.gz" for run in (1, 2)]


def masks_found(dataset, scans, masks):
    """Make a participant of these scans and brain masks; return the name of the mask of each scan."""
    for scan in scans:
        dataset.add("_".join(filter(None, ("sub-09", scan))))
    for mask in masks:
        path = dataset.derivatives / "sub-09/anat" / "_".join(filter(None, ("sub-09", mask, "desc-brain_mask.nii.gz")))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_scans(dataset.root, participants=["09"], derivatives={"m": dataset.derivatives})
    start, end = "sub-09", "_desc-brain_mask.nii.gz"
    return [scan.mask and scan.mask.name.removeprefix(start).removesuffix(end).strip("_") for scan in found]


@pytest.mark.parametrize(
    ("scans", "masks", "expected"),
    [
        (["run-01"], ["run-1"], ["run-1"]),
        (["run-1"], ["run-01"], ["run-01"]),
        (["ses-a"], [""], [""]),
        (["acq-mprage"], [""], [""]),
        (["ses-a_acq-x_run-1"], ["acq-x", "acq-x_run-01"], ["acq-x_run-01"]),  # the nearest
        (["acq-x", "acq-y"], ["acq-x", ""], ["acq-x", None]),
        (["", "run-2"], [""], ["", None]),  # exactly the first one's
        (["ses-a", "ses-b"], [""], [None, None]),
        (["ses-a_run-1", "ses-b_run-1"], ["run-1"], [None, None]),
        (["ses-a_run-1", "ses-b_run-2"], ["run-1"], ["run-1", None]),
        (["run-1"], ["run-2"], [None]),
        (["ses-a"], ["ses-A"], [None]),
        ([""], ["ses-a"], [None]),
        ([""], ["hemi-L"], [None]),
        ([""], ["label-WM"], [None]),
        (["run-1"], ["space-MNI"], [None]),
    ],
)
def test_a_mask_belongs_to_a_scan_if_it_has_no_other_entities_and_fits_no_other_scan(dataset, scans, masks, expected):
    assert masks_found(dataset, scans, masks) == expected


def test_a_mask_is_not_used_for_the_chosen_session_if_it_fits_another_session(dataset):
    masks_found(dataset, ["ses-a", "ses-b"], [""])
    (found,) = find_scans(dataset.root, participants=["09"], sessions=["a"], derivatives={"m": dataset.derivatives})
    assert found.mask is None


def test_masks_that_are_not_used_and_scans_without_one_are_logged(dataset, said):
    masks_found(dataset, ["ses-a", "ses-b"], [""])
    assert "sub-09_desc-brain_mask.nii.gz is not used: it could belong to several scans" in said.text
    assert "2 scans have no brain mask in the derivatives: sub-09_ses-a, sub-09_ses-b" in said.text


@pytest.mark.parametrize("name", ["T1w_label-lesion_roi", "label-lesion_roi", "label-lesion_mask", "desc-lesion_mask"])
def test_lesion_masks_of_the_dataset_itself_are_used_and_those_of_derivatives_go_first(dataset, name):
    raw = dataset.root / f"sub-02/anat/sub-02_{name}.nii.gz"
    raw.touch()
    (dataset.root / "sub-01/anat/sub-01_desc-brain_mask.nii.gz").touch()
    first, second = find_scans(dataset.root)
    assert (first.mask, first.lesion, second.lesion) == (None, None, raw)
    derived = dataset.derivatives / "sub-02/anat/sub-02_desc-lesion_mask.nii.gz"
    derived.touch()
    assert find_scans(dataset.root, derivatives={"manual": dataset.derivatives})[1].lesion == derived


@pytest.mark.parametrize("above", ["sub-pilot", "ses-x", "acq-3T", "run-2", "anat", "desc-brain", "func"])
def test_entities_do_not_come_from_folders_above_the_dataset(tmp_path, make_dataset, above):
    (tmp_path / above).mkdir()
    dataset = make_dataset(tmp_path / above, ["sub-01", "sub-02_ses-b"])
    (dataset.derivatives / "sub-01/anat/sub-01_desc-brain_mask.nii.gz").touch()
    first, second = find_scans(dataset.root, derivatives={"m": dataset.derivatives}, labels_desc="malf")
    assert (first.entities, second.entities) == ({"subject": "01"}, {"subject": "02", "session": "b"})
    assert (first.relative, first.skull_stripped) == ("sub-01/anat/sub-01_T1w.nii.gz", True)
    assert first.mask.name == "sub-01_desc-brain_mask.nii.gz"
    assert first.labels.name == "sub-01_desc-malf_dseg.nii.gz"


def test_files_of_participants_that_were_not_chosen_are_not_opened(dataset):
    (dataset.root / "sub-02/anat/sub-02_T1w.json").write_text("{")
    (dataset.root / "sub-02/anat/sub-02_T1w.nii").touch()
    assert [scan.problem for scan in find_scans(dataset.root, participants=["01"])] == [""]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda anat: (anat / "sub-02_T1w.json").write_text("{"), r"sub-02_T1w.json cannot be read as JSON"),
        (lambda anat: (anat / "sub-02_T1w.json").write_text("[1]"), r"sub-02_T1w.json holds no JSON object"),
        (lambda anat: (anat.parent / "T1w.json").write_bytes(b"\xff"), r"T1w.json cannot be read as JSON"),
        (lambda anat: (anat / "sub-02_T1w.json").symlink_to("absent"), r"sub-02_T1w.json is a link to a file"),
        (lambda anat: (anat / "sub-02_T1w.nii").touch(), r"would get the same output names: choose one"),
        (lambda anat: (anat / "sub-02_T1w.nii.gz").rename(anat / "sub-03_T1w.nii.gz"), r"name and folder must say"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_the_problem_of_its_scan_alone(dataset, spoil, sentence):
    spoil(dataset.root / "sub-02/anat")
    first, second = find_scans(dataset.root)
    assert first.problem == ""
    assert second.name == "sub-02"
    assert re.search(sentence, second.problem)


@pytest.mark.parametrize("where", ["root", "derivatives"])
def test_a_folder_that_cannot_be_listed_is_the_problem_of_its_scans(dataset, monkeypatch, where):
    for session in "ab":
        dataset.add(f"sub-03_ses-{session}")
    closed = str(getattr(dataset, where) / "sub-03/ses-b/anat")
    scandir = os.scandir

    def refusing(path):
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find_scans(dataset.root, derivatives={"m": dataset.derivatives})
    assert [scan.name for scan in found] == ["sub-01", "sub-02", "sub-03_ses-a", "sub-03_ses-b"]
    assert [bool(scan.problem) for scan in found] == [False, False, False, True]
    assert "sub-03/ses-b/anat cannot be listed (Permission denied)" in found[3].problem
    assert [scan.problem for scan in find_scans(dataset.root, participants=["01"])] == [""]


def test_a_label_that_bids_does_not_allow_is_not_mistaken_for_another_participant(dataset):
    dataset.add("sub-01-pilot")
    found = find_scans(dataset.root)
    assert [(scan.name, bool(scan.problem)) for scan in found] == [
        ("sub-01", False), ("sub-01-pilot", True), ("sub-02", False),
    ]  # fmt: skip


def test_a_filter_compares_runs_as_numbers_and_takes_lists_and_any(dataset):
    for name in ("sub-03_run-01", "sub-03_run-02", "sub-03_acq-x"):
        dataset.add(name)
    assert names(dataset, filters={"run": "1"}) == ["sub-03_run-01"]
    assert names(dataset, filters={"run": [2, 3]}) == ["sub-03_run-02"]
    assert names(dataset, filters={"run": "*"}) == ["sub-03_run-01", "sub-03_run-02"]
    assert names(dataset, filters={"acquisition": ["x", None], "run": None}) == ["sub-01", "sub-02", "sub-03_acq-x"]
    with pytest.raises(InputError, match="BIDS has no entity nonsense"):
        find_scans(dataset.root, filters={"nonsense": "1"})
