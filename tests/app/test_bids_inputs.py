"""Which scans are found, and with what."""

import json

import pytest

from nio_pydra.bids.inputs import find_scans, read_filters
from nio_pydra.errors import InputError


def names(dataset, tmp_path, **options):
    return [scan.name for scan in find_scans(dataset.root, tmp_path / "work", **options)]


def test_every_scan_of_every_session_and_run_is_found_once(dataset, tmp_path):
    dataset.add("sub-03_ses-a_run-1")
    dataset.add("sub-03_ses-a_run-2")
    dataset.add("sub-03_ses-b_acq-fast")
    (dataset.root / "sub-01/anat/sub-01_part-phase_T1w.nii.gz").touch()
    (dataset.root / "sub-01/anat/sub-01_T2w.nii.gz").touch()
    assert names(dataset, tmp_path) == [
        "sub-01", "sub-02", "sub-03_ses-a_run-1", "sub-03_ses-a_run-2", "sub-03_ses-b_acq-fast",
    ]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "sub-"])
def test_participant_labels_work_with_and_without_prefix(dataset, tmp_path, prefix):
    assert names(dataset, tmp_path, participants=[f"{prefix}02"]) == ["sub-02"]


def test_session_labels_choose_sessions(dataset, tmp_path):
    for session in "ab":
        dataset.add(f"sub-03_ses-{session}")
    assert names(dataset, tmp_path, sessions=["ses-b"]) == ["sub-03_ses-b"]


def test_filter_file_chooses_by_value_and_by_absence(dataset, tmp_path):
    dataset.add("sub-03_acq-fast")
    file = tmp_path / "filter.json"
    file.write_text(json.dumps({"t1w": {"acquisition": "fast"}, "bold": {"task": "rest"}}))
    assert names(dataset, tmp_path, filters=read_filters(file)) == ["sub-03_acq-fast"]
    file.write_text(json.dumps({"t1w": {"acquisition": None}}))
    assert names(dataset, tmp_path, filters=read_filters(file)) == ["sub-01", "sub-02"]


def test_a_scan_added_after_the_first_look_is_found(dataset, tmp_path):
    assert len(names(dataset, tmp_path)) == 2
    assert len(names(dataset, tmp_path)) == 2  # now from the stored index
    dataset.add("sub-03")
    assert names(dataset, tmp_path) == ["sub-01", "sub-02", "sub-03"]


def test_sidecars_are_inherited_and_the_nearest_one_wins(dataset, tmp_path):
    (dataset.root / "sub-02/anat/sub-02_T1w.json").write_text('{"SkullStripped": false}')
    found = find_scans(dataset.root, tmp_path / "work")
    assert [scan.skull_stripped for scan in found] == [True, False]


@pytest.mark.parametrize("name", ["desc-lesion_mask", "label-lesion_mask", "space-orig_desc-lesion_mask",
                                  "T1w_label-lesion_roi"])  # fmt: skip
def test_lesion_masks_are_found_by_any_of_their_names(dataset, tmp_path, name):
    anat = dataset.derivatives / "sub-02/anat"
    for other in ("space-MNI_desc-lesion_mask", "T2w_desc-lesion_mask", "desc-brain_mask"):
        (anat / f"sub-02_{other}.nii.gz").touch()
    (anat / f"sub-02_{name}.nii.gz").touch()
    found = find_scans(dataset.root, tmp_path / "work", derivatives={"manual": dataset.derivatives})
    assert [scan.lesion and scan.lesion.name for scan in found] == [None, f"sub-02_{name}.nii.gz"]


def test_two_lesion_masks_of_one_scan_are_refused(dataset, tmp_path):
    for name in ("desc-lesion_mask", "label-lesion_roi"):
        (dataset.derivatives / f"sub-02/anat/sub-02_{name}.nii.gz").touch()
    with pytest.raises(InputError, match="manual have 2 files for one scan"):
        find_scans(dataset.root, tmp_path / "work", derivatives={"manual": dataset.derivatives})


def test_masks_and_labels_of_another_run_or_space_are_not_taken(dataset, tmp_path):
    for run in (1, 2):
        dataset.add(f"sub-03_run-{run}")
    anat = dataset.derivatives / "sub-03/anat"
    for name in ("run-2_desc-brain", "run-1_space-MNI_desc-brain", "run-1_desc-head", "desc-brain"):
        (anat / f"sub-03_{name}_mask.nii.gz").touch()
    found = find_scans(
        dataset.root, tmp_path / "work",
        participants=["03"], derivatives={"manual": dataset.derivatives}, labels_desc="malf",
    )  # fmt: skip
    assert [scan.mask and scan.mask.name for scan in found] == [None, "sub-03_run-2_desc-brain_mask.nii.gz"]
    assert [scan.labels.name for scan in found] == [f"sub-03_run-{run}_desc-malf_dseg.nii.gz" for run in (1, 2)]
