"""Headers that place an image in more than one way, or in none, are refused; copies that are clear can be made."""

import warnings

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nio_pydra.cli import nio
from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_image, load_labels, load_mask, same_grid, save_image

SHAPE = (20, 24, 18)
VOXELS = np.random.default_rng(0).integers(1, 100, SHAPE).astype(np.int16)
LAS = np.array([[-2.0, 0, 0, 18], [0, 2, 0, -20], [0, 0, 2, -15], [0, 0, 0, 1]])


def turned(affine, axis, degrees):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return turn @ affine


def sheared(affine):
    shear = np.eye(4)
    shear[0, 1] = 0.12
    return shear @ affine


def write(path, *, qform=None, sform=None, scode=1, zooms=(2, 2, 2), units="mm", sizes=None):
    """Write a header as it is given: nibabel would make its parts agree."""
    image = nib.Nifti1Image(VOXELS, None)
    header = image.header
    header.set_qform(np.eye(4) if qform is None else qform, 0 if qform is None else 1)
    header.set_sform(np.eye(4) if sform is None else sform, 0 if sform is None else scode)
    header.set_zooms(zooms)
    header.set_xyzt_units(units)
    if sizes is not None:
        header["pixdim"][1:4] = sizes
    with nib.openers.Opener(str(path), "wb") as stream:
        header["vox_offset"], header["magic"] = 352, b"n+1"
        stream.write(header.binaryblock + bytes(4) + VOXELS.tobytes(order="F"))
    return path


REFUSED = {
    "none": (dict(), r"does not say how its voxels lie .*nio orient .*bad\.nii\.gz OUT --axes LAS"),
    "turned": (dict(qform=LAS, sform=turned(LAS, "x", 20), scode=2), r"place it \d+\.\d mm apart.* --keep sform"),
    "moved": (dict(qform=LAS, sform=LAS + np.eye(4, k=3) * 3, scode=2), r"place it 3\.0 mm apart"),
    "sheared, with a qform": (dict(qform=LAS, sform=sheared(LAS), scode=2), r"off a right angle.* --keep qform"),
    "sheared": (dict(sform=sheared(LAS)), r"6\.\d\d degrees off a right angle.* without shear\.$"),
    "sizes": (dict(sform=LAS, zooms=(1, 1, 1)), r"voxels of 2 x 2 x 2 mm by its sform and of 1 x 1 x 1 mm"),
    "metres": (dict(sform=LAS, units="meter"), r"voxel sizes in meters: expected mm"),
    "negative sizes": (dict(sform=LAS, sizes=(-2, 2, 2)), r"voxel sizes \(pixdim\) of -2 x 2 x 2 mm.* --keep sform"),
}


@pytest.mark.parametrize("load", [load_image, load_labels, load_mask])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_header_that_programs_read_in_different_ways_is_refused(tmp_path, kind, load):
    header, reason = REFUSED[kind]
    with pytest.raises(InputError, match=reason) as caught:
        load(write(tmp_path / "bad.nii.gz", **header), role="scan of sub-7")
    assert "scan of sub-7" in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind not in ("none", "sheared")])
def test_what_is_refused_lies_elsewhere_for_ants(tmp_path, kind):
    """The reason of these refusals: were ITK to change, they could go."""
    path = write(tmp_path / "bad.nii.gz", **REFUSED[kind][0])
    assert np.abs(by_ants(path) - nib.load(path).affine).max() > 0.1


def by_ants(path):
    """Voxel-to-world matrix, RAS mm, of an image as ITK reads it."""
    import ants

    image = ants.image_read(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.direction) * image.spacing
    affine[:3, 3] = image.origin
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize(
    "header",
    [
        dict(qform=LAS), dict(sform=LAS), dict(qform=LAS, sform=LAS, scode=4),
        dict(qform=turned(LAS, "xyz", (3, -8, 5)), sform=turned(LAS, "xyz", (3, -8, 5)), scode=2),
    ],
)  # fmt: skip
def test_one_placement_is_read_as_ants_reads_it(tmp_path, header):
    path = write(tmp_path / "good.nii.gz", **header)
    np.testing.assert_allclose(load_image(path).affine, by_ants(path), atol=1e-3)


def test_a_qform_that_is_no_number_is_refused_with_the_advice_that_works(tmp_path, capsys):
    source = write(tmp_path / "nan.nii", qform=LAS, sform=LAS)
    content = bytearray(source.read_bytes())
    content[256:260] = np.float32(np.nan).tobytes()  # quatern_b
    source.write_bytes(content)
    with pytest.raises(InputError, match=r"qform that cannot be read .*--keep sform$"):
        load_image(source)
    assert nio.main(["orient", str(source), str(tmp_path / "q.nii"), "--keep", "qform"]) == 1
    assert "has no qform to keep" in capsys.readouterr().err
    assert nio.main(["orient", str(source), str(tmp_path / "s.nii"), "--keep", "sform"]) == 0
    np.testing.assert_allclose(load_image(tmp_path / "s.nii").affine, LAS)


def test_a_sheared_image_of_another_format_is_refused(tmp_path):
    nib.save(nib.MGHImage(VOXELS, sheared(LAS)), tmp_path / "scan.mgz")
    with pytest.raises(InputError, match=r"scan\.mgz .* off a right angle.* without shear\.$"):
        load_image(tmp_path / "scan.mgz")


def test_an_analyze_image_is_refused(tmp_path):
    nib.save(nib.AnalyzeImage(VOXELS, None), tmp_path / "scan.img")
    with pytest.raises(InputError, match="Analyze image, which does not say where left and right are"):
        load_image(tmp_path / "scan.img")


@pytest.mark.parametrize("tilt", [179.95, 179.0, 90.0, 20.0])
def test_labels_that_ants_wrote_on_the_very_scan_are_on_its_grid(tmp_path, tilt):
    """Near a half turn a qform loses a quarter of a millimetre; that is no other grid, but a millimetre is."""
    import ants

    shape = (160, 190, 160)
    affine = turned(np.diag([1.0, 1, 1, 1]), "xyz", (0.3, -0.2, tilt))
    scan = nib.Nifti1Image(np.ones(shape, np.int16), None)
    scan.set_qform(affine, 1)
    scan.header["sform_code"] = 0
    nib.save(scan, tmp_path / "scan.nii")
    image = ants.image_read(str(tmp_path / "scan.nii"))
    ants.image_write(image.new_image_like(np.ones(shape, np.float32)), str(tmp_path / "labels.nii"))
    like = load_image(tmp_path / "scan.nii")
    load_labels(tmp_path / "labels.nii", like=like)
    for shift in (np.array([0.3, 0, 0]), np.array([0, 0, 1.0])):
        moved = like.affine.copy()
        moved[:3, 3] += shift
        assert not same_grid(nib.Nifti1Image(np.ones(shape, np.int16), moved), like)
    assert not same_grid(nib.Nifti1Image(np.ones(shape, np.int16), turned(like.affine, "y", 0.4)), like)


def test_what_is_written_carries_both_forms_alike(tmp_path):
    affine = turned(LAS, "xyz", (3, -8, 175))
    image = nib.load(save_image(VOXELS, affine, tmp_path / "out.nii.gz"))
    for form, code in (image.header.get_qform(coded=True), image.header.get_sform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(form, affine, atol=0.02)
    np.testing.assert_allclose(by_ants(tmp_path / "out.nii.gz"), affine, atol=0.02)


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
def test_orient_declares_axes_and_keeps_the_voxels(tmp_path, name):
    source = write(tmp_path / "lost.nii.gz")
    scaled = nib.load(source)
    scaled.header.set_slope_inter(0.5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nib.save(nib.Nifti1Image(scaled.get_fdata(), None, scaled.header), source)
    before = nib.load(source).get_fdata()
    assert nio.main(["orient", str(source), str(tmp_path / name), "--axes", "pir"]) == 0
    image = load_image(tmp_path / name)
    assert nib.aff2axcodes(image.affine) == ("P", "I", "R")
    np.testing.assert_array_equal(image.get_fdata(), before.astype(np.float32))
    np.testing.assert_allclose(image.affine @ [*(np.array(SHAPE) - 1) / 2, 1], [0, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(by_ants(tmp_path / name), image.affine, atol=1e-4)


@pytest.mark.parametrize("keep", ["qform", "sform"])
def test_orient_keeps_the_form_that_is_right(tmp_path, keep):
    forms = {"qform": LAS, "sform": turned(LAS, "x", 20)}
    source = write(tmp_path / "two.nii.gz", **forms, scode=2)
    assert nio.main(["orient", str(source), str(tmp_path / "one.nii.gz"), "--keep", keep]) == 0
    np.testing.assert_allclose(load_image(tmp_path / "one.nii.gz").affine, forms[keep], atol=1e-4)


def test_orient_refuses_what_it_cannot_do_in_one_line(tmp_path, capsys):
    (tmp_path / "text.nii").write_text("no image")
    lost, shear = write(tmp_path / "lost.nii.gz"), write(tmp_path / "shear.nii.gz", sform=sheared(LAS))
    for arguments, reason in (
        ([lost, "out.nii.gz", "--keep", "qform"], "has no qform to keep"),
        ([shear, "out.nii.gz", "--keep", "sform"], "off a right angle"),
        ([tmp_path / "text.nii", "out.nii.gz", "--axes", "RAS"], "text.nii cannot be read as a NIfTI image"),
        ([tmp_path / "absent.nii", "out.nii.gz", "--axes", "RAS"], "absent.nii"),
        ([lost, "out.mgz", "--axes", "RAS"], "expected a file named"),
        ([lost, "../" + tmp_path.name + "/lost.nii.gz", "--axes", "RAS"], "exists: choose another name"),
    ):
        before = lost.read_bytes()
        arguments[1] = tmp_path / arguments[1]
        assert nio.main(["orient", *map(str, arguments)]) == 1
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and reason in said
        assert lost.read_bytes() == before
        assert arguments[1].name == "lost.nii.gz" or not arguments[1].exists()
    with pytest.raises(SystemExit):
        nio.main(["orient", str(lost), "out.nii.gz", "--axes", "LRA"])
