"""The interface that stands in for niworkflows' `SpatialNormalization`."""

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.errors import InputError
from nio_pydra.spatial.itk import read_h5
from nio_pydra.spatial.transforms import resample

norm = pytest.importorskip("niworkflows.interfaces.norm", reason="niworkflows is not installed: '.[smriprep]'")


@pytest.fixture
def pair(dataset, tmp_path, write_image, monkeypatch):
    """Inputs of a pair with masks."""
    monkeypatch.chdir(tmp_path)
    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    files = {"reference_image": dataset.atlas, "moving_image": scan}
    for name, path in (("reference_mask", dataset.atlas), ("moving_mask", scan)):
        image = nib.load(path)
        files[name] = write_image((image.get_fdata() > 0).astype(np.uint8), tmp_path / f"{name}.nii.gz", image.affine)
    return {name: str(path) for name, path in files.items()} | {"engine": "affine", "device": "cpu"}


def test_it_has_every_input_and_output_of_niworkflows():
    from nio_pydra.interfaces import NIOSpatialNormalization, NIOSpatialNormalizationRPT

    for interface in (NIOSpatialNormalization, NIOSpatialNormalizationRPT):
        assert set(norm.SpatialNormalization.input_spec().get()) <= set(interface.input_spec().get())
        assert set(norm.SpatialNormalization.output_spec().get()) <= set(interface.output_spec().get())


@pytest.mark.parametrize(
    ("engine", "flavor", "preset"),
    [
        ("nio_m", "testing", "draft"),
        ("nio_m", "fast", "fast"),
        ("nio_m", "precise", "precise"),
        ("syn", "testing", "fast"),
        ("lapirn", "precise", "paper"),
    ],
)
def test_flavors_become_presets_unless_one_is_given(engine, flavor, preset):
    from nio_pydra.interfaces import NIOSpatialNormalization

    assert NIOSpatialNormalization(engine=engine, flavor=flavor).inputs.method().preset == preset
    assert NIOSpatialNormalization(engine="nio_m", flavor=flavor, preset="paper").inputs.method().preset == "paper"


def test_images_other_than_t1w_are_refused(pair):
    from nio_pydra.interfaces import NIOSpatialNormalization

    for given in ({"reference": "T2w"}, {"moving": "boldref"}):
        with pytest.raises(
            InputError, match=f"The input {next(iter(given))} is {next(iter(given.values()))}: expected"
        ):
            NIOSpatialNormalization(**pair, **given).run()


def test_both_transforms_both_images_and_a_report_are_made_and_what_is_ignored_is_said_once(pair, caplog):
    from nio_pydra.interfaces import NIOSpatialNormalizationRPT

    caplog.set_level(logging.INFO)
    interface = NIOSpatialNormalizationRPT(**pair, float=True, use_histogram_matching=False, generate_report=True)
    found = interface.run().outputs
    said = [record.getMessage() for record in caplog.records]
    ignored = [line.split(":")[0].rpartition(" ")[2] for line in said if "ignores the input" in line]
    assert ignored == ["use_histogram_matching", "float"]
    assert any("by affine (default): similarity" in line for line in said)
    assert "<svg" in Path(found.out_report).read_text()
    scan, reference = nib.load(pair["moving_image"]), nib.load(found.reference_image)
    for transform, warped, image, grid in (
        (found.composite_transform, found.warped_image, scan, reference),
        (found.inverse_composite_transform, found.inverse_warped_image, reference, scan),
    ):
        expected = resample(image, grid, read_h5(transform)).get_fdata()
        np.testing.assert_allclose(nib.load(warped).get_fdata(), expected, atol=1e-3)
        inside = grid.get_fdata() > 0
        assert np.corrcoef(expected[inside], grid.get_fdata()[inside])[0, 1] > 0.8
