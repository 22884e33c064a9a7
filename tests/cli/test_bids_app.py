"""The BIDS App from a dataset to derivatives."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.cli import bids_app
from nio_pydra.engines.names import get_engine
from nio_pydra.spatial.images import load_image
from nio_pydra.spatial.itk import read_h5
from nio_pydra.spatial.transforms import resample
from nio_pydra.system.settings import plain
from nio_pydra.workflows import dataset as dataset_workflow

NAMES = {
    "from-T1w_to-Tiny_mode-image_xfm.h5",
    "from-T1w_to-Tiny_mode-image_xfm.json",
    "from-Tiny_to-T1w_mode-image_xfm.h5",
    "from-Tiny_to-T1w_mode-image_xfm.json",
    "space-Tiny_desc-affine_T1w.nii.gz",
    "space-Tiny_desc-affine_T1w.json",
    "space-Tiny_desc-affine_record.json",
    "desc-nio_mask.nii.gz",
    "desc-nio_mask.json",
    "space-Tiny_desc-malf_dseg.nii.gz",
    "space-Tiny_desc-malf_dseg.json",
    "space-T1w_atlas-Tiny_dseg.nii.gz",
    "space-T1w_atlas-Tiny_dseg.json",
}
SCANS = ("sub-01", "sub-02", "sub-03_ses-a_run-1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_dataset):
    """A dataset and the output of its run. Scan and labels of sub-02 are copies of those of sub-01."""
    folder = tmp_path_factory.mktemp("app")
    dataset = make_dataset(folder, SCANS)
    for root, name in ((dataset.root, "T1w.nii.gz"), (dataset.derivatives, "desc-malf_dseg.nii.gz")):
        shutil.copy(root / "sub-01/anat" / f"sub-01_{name}", root / "sub-02/anat" / f"sub-02_{name}")
    out = folder / "out"
    assert bids_app.main(dataset.command(out)) == 0
    return dataset, out


def files_of(out: Path, scan: str) -> dict[str, Path]:
    folder = out.joinpath(*[part for part in scan.split("_") if part[:4] in ("sub-", "ses-")]) / "anat"
    return {path.name.removeprefix(f"{scan}_"): path for path in folder.iterdir()}


@pytest.mark.parametrize("scan", SCANS)
def test_every_scan_has_exactly_the_documented_files(finished, scan):
    assert set(files_of(finished[1], scan)) == NAMES


def test_output_passes_the_bids_validator(finished, bids_errors):
    assert bids_errors(finished[1]) == []


def test_forward_transform_resamples_the_scan_into_the_atlas(finished):
    dataset, out = finished
    files = files_of(out, "sub-01")
    scan = load_image(dataset.root / "sub-01/anat/sub-01_T1w.nii.gz")
    again = resample(scan, load_image(dataset.atlas), read_h5(files["from-T1w_to-Tiny_mode-image_xfm.h5"]))
    written = nib.load(files["space-Tiny_desc-affine_T1w.nii.gz"])
    np.testing.assert_allclose(written.get_fdata(), np.asarray(again.dataobj), atol=1e-3)
    np.testing.assert_allclose(written.affine, nib.load(dataset.atlas).affine)


def test_labels_are_resampled_in_both_directions_onto_the_right_grids(finished):
    dataset, out = finished
    files = files_of(out, "sub-03_ses-a_run-1")
    pairs = (
        ("space-Tiny_desc-malf_dseg.nii.gz", dataset.atlas_labels),
        (
            "space-T1w_atlas-Tiny_dseg.nii.gz",
            dataset.derivatives / "sub-03/ses-a/anat/sub-03_ses-a_run-1_desc-malf_dseg.nii.gz",
        ),
    )
    for name, truth in pairs:
        moved, own = nib.load(files[name]), nib.load(truth)
        np.testing.assert_allclose(moved.affine, own.affine)
        assert np.mean(moved.get_fdata()[own.get_fdata() > 0] == own.get_fdata()[own.get_fdata() > 0]) > 0.9


def test_record_holds_what_a_methods_section_needs(finished):
    record = json.loads(files_of(finished[1], "sub-01")["space-Tiny_desc-affine_record.json"].read_text())
    for key in ("engine", "preset", "peak_memory_mb", "std_jacobian", "fold_percent", "versions", "threads", "device"):
        assert key in record
    assert set(record["seconds"]) >= {"affine", "registration", "files"}
    assert record["seconds"]["affine"] > 0
    assert record["dice"]["mean"] > 0.9
    assert set(record["dice"]["labels"]) == {"1", "2", "3"}
    assert set(record["inverse_error_mm"]) == {"voxels", "between_voxels", "backward"}


def test_sidecars_name_their_sources(finished):
    dataset, out = finished
    sidecar = json.loads(files_of(out, "sub-01")["space-Tiny_desc-affine_T1w.json"].read_text())
    assert sidecar["SkullStripped"] is True
    assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz", dataset.atlas.as_uri()]
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"raw": dataset.root.as_uri(), "manual": dataset.derivatives.as_uri()}


def test_second_run_computes_nothing_and_restores_deleted_derivatives(finished, capsys):
    dataset, out = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("sub-*/**/*.*")}
    shutil.rmtree(out / "sub-02")
    assert bids_app.main(dataset.command(out)) == 0
    assert "started" not in capsys.readouterr().out
    assert set(files_of(out, "sub-02")) == NAMES
    assert {path for path in before if "sub-02" not in path.name and path.stat().st_mtime_ns != before[path]} == set()


def test_parallel_processes_give_the_same_as_one_after_another(finished, tmp_path):
    dataset, out = finished
    more = ["--nprocs", "2", "--omp-nthreads", "1", "--participant-label", "01", "03"]
    assert bids_app.main(dataset.command(tmp_path / "out", *more)) == 0
    for scan in ("sub-01", "sub-03_ses-a_run-1"):
        name = "space-Tiny_desc-affine_T1w.nii.gz"
        parallel, serial = (nib.load(files_of(folder, scan)[name]).get_fdata() for folder in (tmp_path / "out", out))
        np.testing.assert_array_equal(parallel, serial)


def test_group_level_gathers_one_row_per_scan(finished, capsys):
    dataset, out = finished
    assert bids_app.main([str(dataset.root), str(out), "group"]) == 0
    table, columns, _page = (Path(line) for line in capsys.readouterr().out.split())
    assert table.name == "group_desc-affine_registration.tsv"
    with table.open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [(row["participant_id"], row["session_id"], row["scan"]) for row in rows] == [
        ("sub-01", "n/a", "n/a"),
        ("sub-02", "n/a", "n/a"),
        ("sub-03", "ses-a", "run-1"),
    ]
    record = json.loads(files_of(out, "sub-03_ses-a_run-1")["space-Tiny_desc-affine_record.json"].read_text())
    assert {(row["status"], row["reason"]) for row in rows} == {("done", "n/a")}
    assert float(rows[2]["dice_mean"]) == pytest.approx(record["dice"]["mean"], abs=1e-3)
    assert set(json.loads(columns.read_text())) == set(rows[0])


def group_rows(dataset, out):
    assert bids_app.main([str(dataset.root), str(out), "group"]) == 0
    with (out / "group_desc-affine_registration.tsv").open() as stream:
        return {row["participant_id"]: row for row in csv.DictReader(stream, delimiter="\t")}


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_that_is_interrupted_after_a_scan_has_failed_keeps_the_reason(dataset, monkeypatch, capsys, processes):
    def interrupt(*rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset_workflow, "failure_of", interrupt)  # after all scans
    out = dataset.root.parent / "out"
    (dataset.root / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"")
    assert bids_app.main(dataset.command(out, "--nprocs", processes)) == 130
    reason = r"sub-01_T1w.nii.gz .*empty \(0 bytes\)"
    assert re.search(rf"sub-01: failed: .*{reason}", capsys.readouterr().out)
    stored = out / "logs/sub-01_space-Tiny_desc-affine_error.json"
    assert re.search(reason, json.loads(stored.read_text())["reason"])
    assert "Traceback" in stored.with_suffix(".txt").read_text()
    assert re.search(reason, (out / "sub-01.html").read_text())
    assert not list(out.glob("logs/sub-02*"))


def test_a_reason_is_kept_where_another_run_deleted_what_pydra_stored_of_it(dataset, monkeypatch):
    lost = ("it did not run to its end, and pydra stored no error", "")
    found = dataset_workflow.failure_of
    monkeypatch.setattr(dataset_workflow, "failure_of", lambda *rest: lost if found(*rest)[0] else ("", ""))
    out = dataset.root.parent / "out"
    (dataset.root / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"")
    assert bids_app.main(dataset.command(out)) == 1
    stored = out / "logs/sub-01_space-Tiny_desc-affine_error.json"
    assert "empty (0 bytes)" in json.loads(stored.read_text())["reason"]
    assert "Traceback" in stored.with_suffix(".txt").read_text()


def test_a_scan_whose_content_cannot_be_read_stops_no_other(dataset, monkeypatch):
    found = dataset_workflow.stored_products

    def read(common, own, cache):
        if "sub-01" in str(own["scan"]):
            raise OSError(5, "Input/output error")
        return found(common, own, cache)

    monkeypatch.setattr(dataset_workflow, "stored_products", read)
    out = dataset.root.parent / "out"
    assert bids_app.main(dataset.command(out)) == 1
    assert [row["status"] for row in group_rows(dataset, out).values()] == ["failed", "done"]
    assert (
        "sub-01_T1w.nii.gz, or a file that belongs to it, cannot be read: Input/output error"
        in (group_rows(dataset, out)["sub-01"]["reason"])
    )


def test_a_scan_that_failed_is_in_the_group_table_until_it_is_done(dataset, monkeypatch):
    out = dataset.root.parent / "out"
    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    good = scan.read_bytes()
    scan.write_bytes(b"")
    assert bids_app.main(dataset.command(out)) == 1
    assert list(out.glob("logs/*_error.*"))
    rows = group_rows(dataset, out)
    assert [(row["status"], row["engine"], row["preset"], row["atlas"]) for row in rows.values()] == [
        ("failed", "affine", "default", "Tiny"),
        ("done", "affine", "default", "Tiny"),
    ]
    assert re.search(r"sub-01_T1w.nii.gz .*empty \(0 bytes\)", rows["sub-01"]["reason"])
    assert rows["sub-01"]["dice_mean"] == rows["sub-01"]["seconds_affine"] == "n/a"
    assert rows["sub-02"]["reason"] == "n/a"

    scan.write_bytes(good)
    with monkeypatch.context() as patch:  # interrupted after the scan is done, before the run ends
        patch.setattr(dataset_workflow, "failure_of", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
        assert bids_app.main(dataset.command(out)) == 130
    assert [row["status"] for row in group_rows(dataset, out).values()] == ["done", "done"]
    assert bids_app.main(dataset.command(out)) == 0
    assert [row["status"] for row in group_rows(dataset, out).values()] == ["done", "done"]
    assert not list(out.glob("logs/*_error.*"))

    before = files_of(out, "sub-01")["from-T1w_to-Tiny_mode-image_xfm.h5"].read_bytes()
    scan.write_bytes(good[:99])
    assert bids_app.main(dataset.command(out, "--participant-label", "01")) == 1
    rows = group_rows(dataset, out)
    assert [row["status"] for row in rows.values()] == ["failed", "done"]
    assert rows["sub-01"]["reason"].endswith("(The files in its folder are those of an earlier run.)")
    assert rows["sub-01"]["dice_mean"] == "n/a"
    assert files_of(out, "sub-01")["from-T1w_to-Tiny_mode-image_xfm.h5"].read_bytes() == before


def test_a_failure_with_one_atlas_is_not_forgotten_when_another_atlas_works(dataset):
    out = dataset.root.parent / "out"
    scan = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    good = scan.read_bytes()
    scan.write_bytes(b"")
    assert bids_app.main(dataset.command(out, "--participant-label", "01")) == 1
    scan.write_bytes(good)
    assert bids_app.main(dataset.command(out, "--participant-label", "01", "--atlas-name", "Other")) == 0
    assert bids_app.main([str(dataset.root), str(out), "group"]) == 0
    with (out / "group_desc-affine_registration.tsv").open() as stream:
        rows = [(row["atlas"], row["status"]) for row in csv.DictReader(stream, delimiter="\t")]
    assert rows == [("Other", "done"), ("Tiny", "failed")]


def test_pybids_finds_the_derivatives(finished, tmp_path):
    from bids import BIDSLayout

    layout = BIDSLayout(finished[1], validate=False, is_derivative=True, config=["bids", "derivatives"])
    found = layout.get(subject="01", suffix="xfm", extension=".h5", **{"from": "T1w", "to": "Tiny"})
    assert [file.filename for file in found] == ["sub-01_from-T1w_to-Tiny_mode-image_xfm.h5"]


def test_scans_without_labels_are_registered_without_a_score(dataset):
    out = dataset.root.parent / "out"
    command = [str(dataset.root), str(out), "participant", "-w", str(out.parent / "work"), "--participant-label", "01"]
    command += ["--atlas", str(dataset.atlas), "--atlas-name", "Tiny", "--engine", "affine"]
    assert bids_app.main(command) == 0
    files = files_of(out, "sub-01")
    assert set(files) == {name for name in NAMES if "dseg" not in name}
    assert "dice" not in json.loads(files["space-Tiny_desc-affine_record.json"].read_text())


def test_a_scan_that_is_a_link_keeps_its_own_name(dataset, tmp_path):
    path = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    path.symlink_to(path.rename(tmp_path / "key-of-annex.nii.gz"))
    assert bids_app.main(dataset.command(tmp_path / "out", "--participant-label", "01")) == 0
    sidecar = files_of(tmp_path / "out", "sub-01")["desc-nio_mask.json"]
    assert json.loads(sidecar.read_text())["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]


def test_a_mask_from_derivatives_is_used_as_it_is(dataset, write_image):
    labels = dataset.derivatives / "sub-01/anat/sub-01_desc-malf_dseg.nii.gz"
    mask = (nib.load(labels).get_fdata() > 0).astype(np.uint8)
    mask[:8] = 0
    write_image(mask, labels.with_name("sub-01_desc-brain_mask.nii.gz"))
    out = dataset.root.parent / "out"
    assert bids_app.main(dataset.command(out, "--participant-label", "01")) == 0
    np.testing.assert_array_equal(nib.load(files_of(out, "sub-01")["desc-nio_mask.nii.gz"]).get_fdata(), mask)


def test_a_lesion_mask_from_derivatives_changes_the_alignment_of_its_scan_only(finished, tmp_path, write_image):
    """The mask lies on a reoriented copy of the scan, as fMRIPrep writes them. The mask of the other scan is empty."""
    dataset, out = finished
    anat = tmp_path / "lesions/sub-01/anat"
    shutil.copytree(dataset.derivatives, tmp_path / "lesions", ignore=shutil.ignore_patterns("sub-*"))
    scan = nib.load(dataset.root / "sub-01/anat/sub-01_T1w.nii.gz")
    lesion = np.zeros(scan.shape, np.uint8)
    lesion[4:12, 14:20, 8:16] = 1
    turned = nib.Nifti1Image(lesion, scan.affine).as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
    write_image(np.asarray(turned.dataobj), anat / "sub-01_desc-lesion_mask.nii.gz", turned.affine)
    none = tmp_path / "lesions/sub-03/ses-a/anat/sub-03_ses-a_run-1_desc-lesion_mask.nii.gz"
    write_image(np.zeros(scan.shape, np.uint8), none, scan.affine)
    more = ["--participant-label", "01", "03", "-d", f"lesions={tmp_path / 'lesions'}"]
    assert bids_app.main(dataset.command(tmp_path / "out", *more)) == 0
    for name, has_lesion in (("sub-01", True), ("sub-03_ses-a_run-1", False)):
        with_mask, without = (files_of(folder, name) for folder in (tmp_path / "out", out))
        assert json.loads(with_mask["space-Tiny_desc-affine_record.json"].read_text())["lesion_mask"] is has_lesion
        image = "space-Tiny_desc-affine_T1w.nii.gz"
        same = np.array_equal(nib.load(with_mask[image]).get_fdata(), nib.load(without[image]).get_fdata())
        assert same is not has_lesion


def test_settings_of_a_file_are_used_and_recorded_in_full(dataset, tmp_path, capsys):
    for iterations in ((2, 0, 0), (3, 0, 0)):
        (tmp_path / "settings.json").write_text(json.dumps({"preset": "fast", "iterations": iterations}))
        more = ["--participant-label", "01", "--engine", "syn", "--settings", str(tmp_path / "settings.json")]
        assert bids_app.main(dataset.command(tmp_path / "out", *more)) == 0
        assert "sub-01: started" in capsys.readouterr().out  # results of other settings are not used again
        record = json.loads(files_of(tmp_path / "out", "sub-01")["space-Tiny_desc-syn_record.json"].read_text())
        assert record["settings"] == plain(replace(get_engine("syn").presets["fast"], iterations=iterations))
        assert record["preset"] == "fast"


def test_an_unknown_setting_is_refused_in_one_sentence(dataset, tmp_path, capsys):
    (tmp_path / "settings.toml").write_text("iteration = [2, 0, 0]\n")
    more = ["--engine", "syn", "--settings", str(tmp_path / "settings.toml")]
    assert bids_app.main(dataset.command(tmp_path / "out", *more)) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"nio-pydra: error: .*syn \(fast\): there is no setting iteration: choose one of .*", sentence)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_runs_started_together_never_see_each_others_scans(tmp_path, make_dataset):
    """Two datasets with the same names share a work folder, and each dataset's jobs an output folder."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    datasets = [make_dataset(tmp_path / "one", ["sub-01", "sub-02"]), make_dataset(tmp_path / "two", ["sub-02"])]
    datasets[1].add("sub-01", 9.0)
    code = "import sys; from nio_pydra.cli.bids_app import main; sys.exit(main(sys.argv[1:]))"
    jobs = []
    for dataset in datasets:
        for label in ("01", "02"):
            more = ["--participant-label", label, "--omp-nthreads", "1", "-w", str(tmp_path / "work")]
            command = [sys.executable, "-c", code, *dataset.command(dataset.root.parent / "out", *more)]
            jobs.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 4, said
    for dataset in datasets:
        for label in ("01", "02"):
            files = files_of(dataset.root.parent / "out", f"sub-{label}")
            assert set(files) == NAMES
            scan = load_image(dataset.root / f"sub-{label}/anat/sub-{label}_T1w.nii.gz")
            forward = read_h5(files["from-T1w_to-Tiny_mode-image_xfm.h5"])
            again = resample(scan, load_image(dataset.atlas), forward)
            written = nib.load(files["space-Tiny_desc-affine_T1w.nii.gz"])
            np.testing.assert_allclose(written.get_fdata(), np.asarray(again.dataobj), atol=1e-3)
