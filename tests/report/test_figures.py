"""Figures of a registration: where slices lie, and what the pictures in the SVG files show."""

import base64
import io
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from nio_pydra.bids.products import PRODUCTS
from nio_pydra.report.figures import FIGURES, FOLD_COLOUR, Drawn, draw_figures
from nio_pydra.report.mosaic import SLICES, mosaic_around
from nio_pydra.spatial.itk import write_h5
from nio_pydra.spatial.transforms import DisplacementField, Transform

# Grids of a cube of 96 mm, so that all slices are squares.
GRIDS = {
    "RAS": ((24, 24, 24), np.array([[4.0, 0, 0, -46], [0, 4, 0, -46], [0, 0, 4, -46], [0, 0, 0, 1]])),
    "LAS, thick slices": ((24, 24, 16), np.array([[-4.0, 0, 0, 46], [0, 4, 0, -46], [0, 0, 6, -45], [0, 0, 0, 1]])),
    "PSR": ((24, 24, 24), np.array([[0, 0, 4.0, -46], [-4, 0, 0, 46], [0, 4, 0, -46], [0, 0, 0, 1]])),
}


def world_of(shape, affine):
    """Return world coordinates of all voxels, ``(3, X, Y, Z)``."""
    return np.moveaxis(nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)


@pytest.mark.parametrize(("shape", "affine"), GRIDS.values(), ids=GRIDS)
def test_right_and_anterior_are_on_the_right_and_superior_is_up(shape, affine):
    octant = np.all(world_of(shape, affine) > 0, axis=0)  # right, anterior and superior
    view = mosaic_around(nib.Nifti1Image(np.ones(shape, np.uint8), affine))
    shown = view.sample(nib.Nifti1Image(octant.astype(np.uint8), affine), mode="nearest")
    size = shown.shape[0] // 3
    assert shown.shape == (3 * size, SLICES * size)
    margin, half = size // 8, size // 2
    for row in range(3):
        first, *_, last = np.hsplit(shown[row * size : (row + 1) * size], SLICES)
        assert not first.any()
        assert last[margin : half - 2, half + 2 : -margin].all()
        assert not last[half + 2 :].any() and not last[:, : half - 2].any()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, write_image):
    """Figures of a brain that is moved by 12 mm, by a deformation after an affine of 18 mm. It folds in a corner."""
    folder = tmp_path_factory.mktemp("drawn")
    shape, affine = (24, 28, 24), np.diag([6.0, 6.0, 6.0, 1.0])
    affine[:3, 3] = -3.0 * (np.array(shape) - 1)
    x, y, z = world_of(shape, affine)

    def brain(shift):
        radius = np.sqrt((x / 55) ** 2 + ((y - shift) / 66) ** 2 + (z / 55) ** 2)
        return np.float32(100 * (radius < 1) + 100 * (radius < 0.6)), np.uint8(radius < 1), np.int16(radius < 0.6)

    files = {}
    for name, shift in (("atlas", 0.0), ("scan", 30.0)):
        for kind, array in zip(("", "_mask", "_labels"), brain(shift), strict=True):
            files[name + kind] = write_image(array, folder / f"{name}{kind}.nii.gz", affine)
    vectors = np.zeros((3, *shape), np.float32)
    vectors[1] = 12
    vectors[0, 12:15, 12:15, 12:15] = -6 * np.array([0, 3, 6], np.float32)[:, None, None]  # 6 mm voxels swap places
    shift = np.eye(4)
    shift[1, 3] = 18
    back = np.eye(4)
    back[1, 3] = -30
    forward, inverse = Transform((DisplacementField(vectors, affine), shift)), Transform((back,))
    for name, transform in (("forward", forward), ("inverse", inverse), ("affine", Transform((shift,)))):
        write_h5(transform, folder / f"{name}.h5")
    given = Drawn(files["atlas"], files["atlas_mask"], files["scan"], files["scan_mask"], folder / "forward.h5",
                  folder / "inverse.h5", files["atlas_labels"], files["atlas_labels"])  # fmt: skip
    return given, draw_figures(given, folder / "figures"), folder


def pictures(svg):
    """Return the pictures of an SVG, in order."""
    found = re.findall(r'href="data:image/\w+;base64,([^"]+)"', svg.read_text())
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(float) for data in found]


def test_all_kinds_of_figures_are_drawn_and_load_nothing(drawn):
    _, written, _ = drawn
    assert set(written) == set(FIGURES) == {each.name.removesuffix("_figure") for each in PRODUCTS if each.figure}
    for path in written.values():
        text = path.read_text()
        assert set(re.findall(r'(?:href|src)="([^"]{5})', text)) == {"data:"}
        assert not re.search(r"@import|url\(|<script", text)
        assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}


def test_registered_scan_looks_like_the_atlas_and_the_affine_alone_does_not(drawn):
    atlas, registered, affine, _ = pictures(drawn[1]["registration"])
    assert np.abs(registered - atlas).mean() < 4
    assert np.abs(affine - atlas).mean() > 3 * np.abs(registered - atlas).mean()


def test_scan_is_drawn_in_its_own_space_with_the_atlas_mask_on_it(drawn, tmp_path):
    given, written, _ = drawn
    write_h5(Transform((np.eye(4),)), tmp_path / "wrong.h5")
    misplaced = draw_figures(replace(given, inverse_xfm=tmp_path / "wrong.h5"), tmp_path)["mask"]

    def red(svg):
        """Count pixels of the outline of the atlas's mask. That of the scan's mask is drawn over it."""
        scan, outlines = pictures(svg)
        assert scan.mean() > 20
        return int(((outlines[..., 0] > 200) & (outlines[..., 1] < 120) & (outlines[..., 3] > 100)).sum())

    assert red(misplaced) > 3 * red(written["mask"])


def test_folds_are_yellow_and_nothing_else_is(drawn):
    (jacobian,) = pictures(drawn[1]["jacobian"])
    folded = np.abs(jacobian - FOLD_COLOUR).max(axis=-1) < 60
    assert 20 < folded.sum() < 0.05 * folded.size


def test_without_a_deformation_or_labels_these_figures_are_left_out(drawn, tmp_path):
    given, _, folder = drawn
    plain = replace(given, forward_xfm=folder / "affine.h5", labels=None, labels_of_atlas=None)
    assert set(draw_figures(plain, tmp_path)) == {"registration", "mask"}


def test_a_scan_that_was_moved_out_of_sight_is_drawn_black(drawn, tmp_path):
    given, _, _ = drawn
    far = np.eye(4)
    far[0, 3] = 1e4
    write_h5(Transform((far,)), tmp_path / "far.h5")
    written = draw_figures(replace(given, forward_xfm=tmp_path / "far.h5", inverse_xfm=tmp_path / "far.h5"), tmp_path)
    atlas, registered, *_ = pictures(written["registration"])
    assert atlas.max() > 200 and registered.max() == 0


def test_figures_that_cannot_be_drawn_do_not_cost_the_registration(tmp_path, caplog):
    from nio_pydra.tasks import DrawFigures

    files = {}
    for name in ("atlas", "atlas_mask", "scan", "mask", "forward_xfm", "inverse_xfm"):
        files[name] = tmp_path / f"{name}.nii.gz"
        files[name].write_text(f"no image {name}")
    drawn = DrawFigures(**files)(cache_root=tmp_path / "cache")
    assert drawn.registration_figure is None and drawn.jacobian_figure is None
    assert "scan.nii.gz: its figures could not be drawn" in caplog.text
