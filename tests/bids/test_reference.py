"""Which scans stand for a participant or a session, and preprocessed scans of fMRIPrep as input."""

import json

import pytest

from nio_pydra.bids.atlas import atlas_from_files
from nio_pydra.bids.inputs import find_scans
from nio_pydra.bids.reference import reference_scans, refuse_other_references
from nio_pydra.errors import InputError

SCANS = ("sub-03_ses-10", "sub-03_ses-1_run-1", "sub-03_ses-1_run-2", "sub-03_ses-b", "sub-03_ses-b_acq-x")


@pytest.mark.parametrize(
    ("reference", "chosen", "alone"),
    [
        # By paths, ses-1/ comes before ses-10/, although by names ses-10 comes before ses-1_run-1.
        ("first-lex", ["sub-01", "sub-02", "sub-03_ses-1_run-1"], [True, True, False]),
        (
            "sessionwise",
            ["sub-01", "sub-02", "sub-03_ses-10", "sub-03_ses-1_run-1", "sub-03_ses-b"],
            [True, True, True, False, False],
        ),
        (None, ["sub-01", "sub-02", *SCANS], [True, True] + [False] * 5),
    ],
)
def test_one_scan_stands_for_each_participant_or_session(dataset, reference, chosen, alone):
    for name in SCANS:
        dataset.add(name)
    found = reference_scans(find_scans(dataset.root), reference)
    assert [scan.name for scan in found] == chosen
    assert [scan.alone for scan in found] == alone


def test_a_folder_with_transforms_of_other_scans_is_refused(dataset, tmp_path):
    for name in ("sub-03_ses-a", "sub-03_ses-b"):
        dataset.add(name)
    atlas = atlas_from_files(dataset.atlas, "Tiny")
    left = tmp_path / "out/sub-03/ses-b/anat/sub-03_ses-b_from-T1w_to-Tiny_mode-image_xfm.h5"
    left.parent.mkdir(parents=True)
    left.touch()
    scans = find_scans(dataset.root)
    for reference in ("sessionwise", None):
        refuse_other_references(tmp_path / "out", reference_scans(scans, reference), [atlas], reference)
    with pytest.raises(InputError, match=r"sub-03_ses-b_from-T1w\S+ is a transform of another scan .*sub-03_ses-a,"):
        refuse_other_references(tmp_path / "out", reference_scans(scans, "first-lex"), [atlas], "first-lex")


@pytest.fixture
def fmriprep(dataset):
    """The dataset as if fMRIPrep had made it: scans in their own space and in another one, and masks."""
    description = {"Name": "x", "BIDSVersion": "1.4.0", "DatasetType": "derivative"}
    description["GeneratedBy"] = [{"Name": "fMRIPrep", "Version": "25.2.7"}]
    (dataset.root / "dataset_description.json").write_text(json.dumps(description))
    for label in ("01", "02"):
        anat = dataset.root / f"sub-{label}/anat"
        (anat / f"sub-{label}_T1w.nii.gz").rename(anat / f"sub-{label}_desc-preproc_T1w.nii.gz")
        for name in ("desc-brain_mask", "space-MNI152NLin2009cAsym_desc-brain_mask",
                     "space-MNI152NLin2009cAsym_res-2_desc-preproc_T1w"):  # fmt: skip
            (anat / f"sub-{label}_{name}.nii.gz").touch()
    return dataset


def test_preprocessed_scans_of_fmriprep_are_taken_with_their_masks_without_a_filter(fmriprep):
    found = find_scans(fmriprep.root)
    assert [(scan.name, scan.image.name, scan.mask.name, scan.problem) for scan in found] == [
        (f"sub-{label}", f"sub-{label}_desc-preproc_T1w.nii.gz", f"sub-{label}_desc-brain_mask.nii.gz", "")
        for label in ("01", "02")
    ]


def test_a_filter_of_the_user_goes_before_that_for_preprocessed_scans(fmriprep):
    found = find_scans(fmriprep.root, filters={"space": "MNI152NLin2009cAsym"})
    assert {scan.image.name[6:] for scan in found} == {"_space-MNI152NLin2009cAsym_res-2_desc-preproc_T1w.nii.gz"}


def test_a_mask_of_this_program_is_used_where_there_is_no_other(dataset):
    anat = dataset.derivatives / "sub-02/anat"
    (anat / "sub-02_desc-nio_mask.nii.gz").touch()
    assert (
        find_scans(dataset.root, derivatives={"m": dataset.derivatives})[1].mask.name == "sub-02_desc-nio_mask.nii.gz"
    )
    (anat / "sub-02_desc-brain_mask.nii.gz").touch()
    found = find_scans(dataset.root, derivatives={"m": dataset.derivatives})[1]
    assert (found.mask.name, found.problem) == ("sub-02_desc-brain_mask.nii.gz", "")


def test_files_are_looked_up_in_a_pybids_database(dataset, make_dataset, tmp_path):
    dataset.add("sub-03_ses-a")
    before = find_scans(dataset.root)
    assert find_scans(dataset.root, database=tmp_path / "db") == before
    dataset.add("sub-03_ses-b")
    assert find_scans(dataset.root, database=tmp_path / "db") == before  # what is not in the database is not seen
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"database \S+/db is of the dataset \S+/raw, not of \S+/other/raw"):
        find_scans(make_dataset(tmp_path / "other", ["sub-01"]).root, database=tmp_path / "db")
    for file in (tmp_path / "db").iterdir():
        file.write_text("no database")
    with pytest.raises(InputError, match=r"The PyBIDS database \S+/db cannot be used .*: delete it"):
        find_scans(dataset.root, database=tmp_path / "db")
