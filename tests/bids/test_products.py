"""The table of products and the names made from it, for the brain and for another object."""

import json
from dataclasses import replace
from fnmatch import fnmatch

import attrs
import pytest

from nio_pydra.bids import description, outputs, products
from nio_pydra.bids.inputs import find_scans, read_filters
from nio_pydra.bids.outputs import output_path, sink
from nio_pydra.bids.products import PRODUCTS, Destination, Product
from nio_pydra.errors import InputError
from nio_pydra.profiles import BRAIN, PROFILES


@pytest.fixture
def lungs(monkeypatch):
    """A profile of another object, in another folder."""
    profile = replace(BRAIN, name="lungs", suffix="ct", datatype="func")
    monkeypatch.setitem(PROFILES, "lungs", profile)
    return profile


@pytest.fixture
def files(tmp_path):
    """One file for each product."""
    for product in products.PRODUCTS:
        (tmp_path / product.name).write_text(product.name)
    return {product.name: tmp_path / product.name for product in products.PRODUCTS}


def destination(out, **more):
    fields = {"entities": {"subject": "01", "session": "a"}, "atlas": "Mine+1", "desc": "syn", "labels_desc": "manual",
              "space": {"space": "Mine", "cohort": "1", "res": "2"}, "source": "bids:raw:x", "labels_source": "file:///l",
              "atlas_reference": "file:///a"}  # fmt: skip
    return Destination(out_dir=str(out), **{**fields, **more})


def readme(out, **more):
    """Return the names that the README lists."""
    description.write_description(out, "command", {}, **more)
    lines = (out / "README").read_text().splitlines()
    return [line.split("  ")[0] for line in lines if line.startswith(("*", "figures/*"))]


def test_results_of_an_earlier_transform_are_deleted_where_there_are_no_new_ones(files, tmp_path):
    to = destination(tmp_path / "out")
    both = [output_path(to, product) for product in PRODUCTS if product.name in ("atlas_labels", "labels_figure")]
    sidecar = both[0].with_name(both[0].name.replace(".nii.gz", ".json"))
    fewer = files | {"atlas_labels": None, "labels_figure": None}
    sink(files, to)
    sink(fewer, to)
    assert all(path.exists() for path in (*both, sidecar)), "the transform is the same"
    files["forward_xfm"].write_text("another transform")
    sink(fewer, to)
    assert not any(path.exists() for path in (*both, sidecar))
    assert output_path(to, next(product for product in PRODUCTS if product.name == "warped")).exists()


def test_labels_under_another_name_are_deleted_with_the_transform_that_moved_them(files, tmp_path):
    row = next(product for product in PRODUCTS if product.name == "labels")
    old, new = destination(tmp_path / "out"), destination(tmp_path / "out", labels_desc="aseg")
    other_space = replace(old, space={"space": "Mine"})
    sink(files, old)
    sink(files, other_space)
    files["forward_xfm"].write_text("another transform")
    sink(files, new)
    assert [path.name for path in (tmp_path / "out/sub-01/ses-a/anat").glob("*res-2*_dseg.*")] == [
        path.name for path in (output_path(new, row), output_path(new, row, ".json"))
    ]
    assert output_path(other_space, row).exists()


def test_what_is_left_of_a_copy_that_broke_off_is_deleted_by_the_next_one(files, tmp_path, monkeypatch):
    to = destination(tmp_path / "out")
    jacobian = output_path(to, next(product for product in PRODUCTS if product.name == "jacobian"))
    sink(files, to)
    files["forward_xfm"].write_text("another transform")
    files["warped"].write_text("another image")
    copy, left = outputs._copy, iter([True, True, False])

    def breaks_off(source, target):
        if not next(left):
            raise OSError(28, "No space left on device")
        copy(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(outputs, "_copy", breaks_off)
        sink(files, to)
    without = files | {"jacobian": None}
    sink(without, to)
    assert not jacobian.exists()


def test_a_conformed_mask_goes_with_its_mask_but_that_of_another_program_stays(files, tmp_path):
    to = destination(tmp_path / "out")
    conformed = next(product for product in PRODUCTS if product.name == "conformed_mask")
    path, sidecar = output_path(to, conformed), output_path(to, conformed, ".json")
    sink(files, to)
    without = files | {"conformed_mask": None}
    sink(without, to)
    assert path.exists() and sidecar.exists(), "the mask is the same"
    files["mask"].write_text("another mask")
    sink(without, to)
    assert not path.exists() and not sidecar.exists()
    path.write_text("a mask of another program")
    files["mask"].write_text("a third mask")
    sink(without, to)
    assert path.exists()


def test_every_file_of_a_scan_is_in_the_readme_once_and_no_other_is(files, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    sidecars = {output_path(destination(out), product, ".json") for product in PRODUCTS if product.sidecar}
    written = [path for path in sink(files, destination(out)) if path not in sidecars]
    names = ["figures/" * (path.parent.name == "figures") + path.name for path in written]
    assert len(names) == len(PRODUCTS)
    patterns = [name.replace("ATLAS", "*") for name in readme(out)]
    matches = [[fnmatch(name, pattern) for pattern in patterns] for name in names]
    assert all(sum(row) == 1 for row in matches)
    assert all(sum(column) == 1 for column in zip(*matches, strict=True))


def test_optional_products_may_be_absent_and_the_others_may_not(files, tmp_path):
    for product in PRODUCTS:
        incomplete = {**files, product.name: None}
        out = tmp_path / f"out_{product.name}"
        if product.optional:
            assert output_path(destination(out), product) not in sink(incomplete, destination(out))
        else:
            with pytest.raises(ValueError, match=f"{product.name}: expected a file"):
                sink(incomplete, destination(out))
            assert not out.exists()


def test_tasks_and_workflow_have_one_field_for_each_product():
    from nio_pydra.tasks import Sink
    from nio_pydra.workflows.subject import Subject

    names = [product.name for product in PRODUCTS]
    assert len(set(names)) == len(names)
    inputs, results = ([field.name for field in attrs.fields(kind)] for kind in (Sink, Subject.Outputs))
    assert [name for name in inputs if name in names] == names
    assert results[-len(names) - 1 :] == [*names, "files"]  # in this order, as `Subject` returns them


def test_another_row_is_enough_for_sink_readme_and_bidsignore(files, tmp_path, monkeypatch):
    picture = Product(
        name="picture",
        text="the {image} image and the atlas in one picture",
        entities=lambda to: {**to.space, "desc": to.desc, "suffix": "picture"},
        sidecar=lambda to: {"Sources": [to.source]},
        extension=".svg",
        in_bids=False,
    )
    for module in (products, outputs, description):
        monkeypatch.setattr(module, "PRODUCTS", (*PRODUCTS, picture))
    file = tmp_path / "picture"
    file.write_text("a picture")
    out = tmp_path / "out"
    out.mkdir()
    *_, written, sidecar, _, _ = sink({**files, "picture": file}, destination(out))  # the last two: the transform's
    assert written.read_text() == "a picture"
    assert written.relative_to(out).as_posix() == (
        "sub-01/ses-a/anat/sub-01_ses-a_space-Mine_cohort-1_res-2_desc-syn_picture.svg"
    )
    assert json.loads(sidecar.read_text()) == {"Sources": ["bids:raw:x"]}
    assert readme(out)[-1] == "*_space-ATLAS_desc-*_picture.svg"
    assert "the T1w image and the atlas in one picture" in (out / "README").read_text()
    assert "*_picture.svg" in (out / ".bidsignore").read_text().split()


def test_names_and_texts_of_another_object_say_nothing_of_brains(files, tmp_path, lungs):
    out = tmp_path / "out"
    out.mkdir()
    written = sink(files, destination(out, profile="lungs"))
    readme(out, profile=lungs)
    names = {path.name.removeprefix("sub-01_ses-a_") for path in written}
    assert {"from-ct_to-Mine+1_mode-image_xfm.h5", "desc-nio_mask.nii.gz", "desc-lungs_mask.nii.gz",
            "space-ct_atlas-Mine+1_dseg.nii.gz",
            "space-Mine_cohort-1_res-2_desc-syn_ct.json"} <= names  # fmt: skip
    assert {path.parent for path in written} == {out / "sub-01/ses-a/func", out / "sub-01/figures"}
    for path in out.rglob("*"):
        assert "T1w" not in path.name and "brain" not in path.name
        if path.is_file():
            text = path.read_text().lower()
            assert "t1w" not in text and "brain" not in text


def test_scans_of_another_object_are_found_with_their_masks(dataset, lungs, tmp_path):
    for root, name in ((dataset.root, "ct"), (dataset.derivatives, "desc-lungs_mask")):
        folder = root / "sub-02/func"
        folder.mkdir()
        (folder / f"sub-02_{name}.nii.gz").touch()
        (folder / f"sub-02_desc-brain_{name}.nii.gz").touch()
    (dataset.derivatives / "sub-02/func/sub-02_space-T1w_desc-lungs_mask.nii.gz").touch()
    found = find_scans(dataset.root, derivatives={"m": dataset.derivatives}, filters={"desc": None}, profile=lungs)
    assert [(scan.image.name, scan.mask.name) for scan in found] == [
        ("sub-02_ct.nii.gz", "sub-02_desc-lungs_mask.nii.gz"),
    ]  # fmt: skip
    filters = tmp_path / "filters.json"
    filters.write_text('{"ct": {"session": "x"}}')
    with pytest.raises(InputError, match=r"no ct image with session=x: expected files named sub-<label>/func/"):
        find_scans(dataset.root, filters=read_filters(filters, lungs), profile=lungs)
    with pytest.raises(InputError, match=r'no filter for T1w images: expected \{"t1w"'):
        read_filters(filters)
