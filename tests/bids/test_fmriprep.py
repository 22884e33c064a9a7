"""The outputs as fMRIPrep takes them with -d: found by sMRIPrep's own function, applied by its own steps."""

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.cli import bids_app

pytest.importorskip("smriprep", reason="sMRIPrep is not installed: pip install smriprep")

SPACE = "MNIPediatricAsym:cohort-2"


@pytest.fixture(scope="module")
def dataset_of_two(tmp_path_factory, make_dataset):
    """One participant with an LAS scan, and one with two sessions."""
    dataset = make_dataset(tmp_path_factory.mktemp("fmriprep"), ["sub-01", "sub-02_ses-a", "sub-02_ses-b"])
    for path in (
        dataset.root / "sub-01/anat/sub-01_T1w.nii.gz",
        dataset.derivatives / "sub-01/anat/sub-01_desc-malf_dseg.nii.gz",
    ):
        image = nib.load(path)
        turned = image.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
        nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), path)
    assert nib.aff2axcodes(nib.load(path).affine) == ("L", "A", "S")
    return dataset


def outputs(dataset, name, *more):
    out = dataset.root.parent / name
    assert bids_app.main(dataset.command(out, "--atlas-name", "MNIPediatricAsym+2", *more)) == 0
    return out


@pytest.fixture(scope="module")
def first(dataset_of_two):
    """The output with one pair of transforms for each participant, and the mask for fMRIPrep."""
    return outputs(dataset_of_two, "out", "--subject-anatomical-reference", "first-lex", "--fmriprep-mask")


def collected(out, label, sessions=None):
    from smriprep.utils.bids import collect_derivatives

    return collect_derivatives(out, label, [SPACE], session_id=sessions)


def is_one_pair(found, out, name):
    pair = found["transforms"][SPACE]
    ends = {"forward": "from-T1w_to-MNIPediatricAsym+2", "reverse": "from-MNIPediatricAsym+2_to-T1w"}
    return {key: str(path) for key, path in pair.items()} == {
        key: str(next(out.rglob(f"{name}_{end}_mode-image_xfm.h5"))) for key, end in ends.items()
    }


def test_both_transforms_to_a_cohort_are_collected(first):
    assert is_one_pair(collected(first, "01"), first, "sub-01")


def test_two_sessions_give_one_pair_for_the_participant_or_one_for_each_session(dataset_of_two, first):
    for sessions in (["a", "b"], None):  # what fMRIPrep gives, and what older ones give
        assert is_one_pair(collected(first, "02", sessions), first, "sub-02_ses-a")
    more = ("--subject-anatomical-reference", "sessionwise", "--participant-label", "02")
    out = outputs(dataset_of_two, "sessions", *more)
    for session in "ab":
        assert is_one_pair(collected(out, "02", session), out, f"sub-02_ses-{session}")


def test_the_mask_for_fmriprep_fits_the_scan_that_it_conforms_and_our_own_one_is_not_collected(dataset_of_two, first):
    from niworkflows.interfaces.images import Conform, TemplateDimensions
    from niworkflows.interfaces.nibabel import ApplyMask

    scan = dataset_of_two.root / "sub-01/anat/sub-01_T1w.nii.gz"
    folder = first.parent
    dimensions = TemplateDimensions(anat_list=[scan]).run(cwd=folder).outputs
    conformed = (
        Conform(in_file=scan, target_zooms=dimensions.target_zooms, target_shape=dimensions.target_shape)
        .run(cwd=folder)
        .outputs.out_file
    )
    mask = collected(first, "01")["t1w_mask"]
    masked = ApplyMask(in_file=conformed, in_mask=mask).run(cwd=folder).outputs.out_file
    inside = nib.load(mask).get_fdata() > 0
    assert 0.1 < inside.mean() < 0.9
    np.testing.assert_array_equal(nib.load(masked).get_fdata()[inside], nib.load(conformed).get_fdata()[inside])
    own = mask.replace("desc-brain", "desc-nio")
    with pytest.raises(ValueError, match="affines are not similar enough"):
        ApplyMask(in_file=conformed, in_mask=own).run(cwd=folder)
    # A participant with two scans gets none: fMRIPrep may put both on another grid.
    assert "t1w_mask" not in collected(first, "02", ["a", "b"])


def test_without_a_request_fmriprep_makes_its_own_mask(dataset_of_two):
    out = outputs(dataset_of_two, "plain", "--participant-label", "01")
    assert not {"t1w_mask", "t1w_dseg", "t1w_preproc"} & set(collected(out, "01"))
    assert is_one_pair(collected(out, "01"), out, "sub-01")
