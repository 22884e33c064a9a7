"""Options of the BIDS App that users of fMRIPrep know."""

import argparse
import csv
import fcntl
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.bids.description import write_description
from nio_pydra.cli import bids_app
from nio_pydra.cli.config_file import with_config_file, write_config_file
from nio_pydra.cli.dataset import _share_cores
from nio_pydra.cli.options import memory, named_path
from nio_pydra.cli.spaces import check_space_options
from nio_pydra.engines.masks import background_is_zero
from nio_pydra.errors import InputError


@pytest.fixture(scope="module")
def two_atlases(tmp_path_factory, make_dataset, write_image):
    """Output of a run with two scans and two atlases."""
    dataset = make_dataset(tmp_path_factory.mktemp("spaces"), ["sub-01", "sub-02"])
    image = nib.load(dataset.atlas)
    other = write_image(1.5 * image.get_fdata(dtype=np.float32), dataset.atlas.with_name("other.nii.gz"), image.affine)
    both = ["--atlas", str(dataset.atlas), "--atlas-name", "Tiny", "--atlas", str(other), "--atlas-name", "Other"]
    command = dataset.command(
        dataset.root.parent / "out", "--skull-stripped", *both, "--atlas-labels", str(dataset.atlas_labels)
    )
    command += ["--atlas-labels", str(dataset.atlas_labels)]
    assert bids_app.main(command) == 0
    return dataset, command


def test_each_scan_is_registered_to_each_atlas_from_one_mask(two_atlases, bids_errors):
    out = Path(two_atlases[1][1])
    for label in ("01", "02"):
        anat = out / f"sub-{label}/anat"
        for space in ("Tiny", "Other"):
            record = json.loads((anat / f"sub-{label}_space-{space}_desc-affine_record.json").read_text())
            assert record["dice"]["mean"] > 0.9
        assert len(list(anat.glob("*_xfm.h5"))) == 4
        assert len(list(anat.glob("*_mask.nii.gz"))) == 1
    assert bids_errors(out) == []
    # Of two scans and two atlases.
    assert len(list((out.parent / "work/nio_pydra/pydra").glob("python-*/mask.nii.gz"))) == 4


def test_two_atlases_stand_in_one_group_table(two_atlases):
    command = two_atlases[1]
    assert bids_app.main([command[0], command[1], "group"]) == 0
    with (Path(command[1]) / "group_desc-affine_registration.tsv").open() as stream:
        rows = [(row["participant_id"], row["atlas"]) for row in csv.DictReader(stream, delimiter="\t")]
    assert rows == [("sub-01", "Other"), ("sub-01", "Tiny"), ("sub-02", "Other"), ("sub-02", "Tiny")]


def test_the_options_of_a_run_are_written_and_can_be_read_again(two_atlases, tmp_path, capsys):
    dataset, command = two_atlases
    out = Path(command[1])
    (written,) = out.glob("logs/*.toml")
    again = [command[0], str(out), "participant", "--config-file", str(written)]
    assert bids_app.main(again) == 0
    said = capsys.readouterr().out
    assert "4 of 4 registrations done" in said and "started" not in said
    texts = [path.read_text().split("\n", 1)[1] for path in sorted(out.glob("logs/*.toml"))]
    assert texts[0] == texts[1]
    # The command line goes first.
    more = ["--atlas", str(dataset.atlas), "--atlas-name", "Tiny", "--atlas-labels", str(dataset.atlas_labels)]
    assert bids_app.main([*again, *more, "--participant_label", "02"]) == 0  # Other is left out
    assert "1 of 1 scan done" in capsys.readouterr().out

    config = tmp_path / "config.toml"
    config.write_text("templat = 'x'\n")
    assert bids_app.main([command[0], str(out), "participant", "--config-file", str(config)]) == 1
    assert re.search(
        r"config.toml \(settings\) names templat, which is no option of nio-pydra", capsys.readouterr().err
    )


def test_the_command_line_goes_before_the_file_of_options(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(
        'nprocs = 3\nomp_nthreads = 2\nverbose = 2\nsloppy = true\nnotrack = true\nfmriprep-mask = false\nmem = "4G"\n'
        'output-spaces = ["A", "B:res-2"]\nderivatives = ["x=/x", "y=/y"]\nparticipant-label = "01"\n'
    )
    parser = bids_app._parser()

    def chosen(*more):
        arguments = ["in", "out", "participant", "--config-file", str(file), *more]
        return with_config_file(parser, arguments, parser.parse_args(arguments))

    plain = chosen()
    assert (plain.nprocs, plain.omp_nthreads, plain.verbose, plain.mem) == (3, 2, 2, 4096)
    assert (plain.sloppy, plain.notrack, plain.fmriprep_mask) == (True, True, False)
    assert plain.output_spaces == ["A", "B:res-2"]
    assert plain.derivatives == [("x", Path("/x")), ("y", Path("/y"))]
    # Atlases are one choice, and so are a preset and --sloppy.
    more = chosen("--atlas", "a.nii", "--atlas-name", "N", "--preset", "fast", "-v", "-d", "z=/z", "--nprocs", "1")
    assert (more.output_spaces, more.sloppy, more.preset) == ([], False, "fast")
    assert (more.nprocs, more.omp_nthreads, more.verbose, more.derivatives) == (1, 2, 1, [("z", Path("/z"))])
    for line, refusal in (
        ('nprocs = "many"', "argument --nprocs: invalid positive value: 'many'"),
        ('verbose = "very"', "argument -v/--verbose: ignored explicit argument 'very'"),
    ):
        file.write_text(f"{line}\n")
        with pytest.raises(InputError, match=rf"config.toml \(settings\): {refusal}"):
            chosen()


def test_options_of_sbatch_survive_the_file_and_are_dropped_where_another_worker_is_chosen(tmp_path):
    parser = bids_app._parser()

    def chosen(*words):
        arguments = ["in", "out", "participant", *words]
        return with_config_file(parser, arguments, parser.parse_args(arguments))

    file = tmp_path / "run.toml"
    options = chosen("--worker", "slurm", "--slurm-args=--partition=short --comment='a b'", "--output-spaces", "A")
    write_config_file(options, file, "nio-pydra")
    again = chosen("--config-file", str(file))
    assert (again.worker, again.slurm_args) == ("slurm", "--partition=short --comment='a b'")
    assert chosen("--config-file", str(file), "--slurm-args=--time=9").worker == "slurm"
    assert chosen("--config-file", str(file), "--worker", "cf").slurm_args == ""


def test_the_description_keeps_every_run_once(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/nio.sif")
    (dataset.root / "dataset_description.json").write_text(
        '{"Name": "x", "BIDSVersion": "1.10.0", "License": "CC0", "DatasetDOI": "doi:10.1/x"}'
    )
    for command in ("one", "two", "one"):
        write_description(tmp_path, command, {"raw": dataset.root, "manual": dataset.derivatives})
    written = json.loads((tmp_path / "dataset_description.json").read_text())
    assert [run["Description"] for run in written["GeneratedBy"]] == ["two", "one"]
    assert written["GeneratedBy"][0]["Container"] == {"Type": "apptainer", "URI": "/images/nio.sif"}
    assert written["License"] == "CC0"
    assert [source.get("DOI") for source in written["SourceDatasets"]] == ["doi:10.1/x", None]


def test_runs_started_together_all_stand_in_the_description(dataset, tmp_path):
    code = "import sys; from pathlib import Path; from nio_pydra.bids.description import write_description as w; "
    code += "[w(Path(sys.argv[1]), f'{sys.argv[2]} {i}', {}) for i in range(20)]"
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    written = json.loads((tmp_path / "dataset_description.json").read_text())["GeneratedBy"]
    assert {run["Description"] for run in written} == {f"{name} {number}" for name in "abc" for number in range(20)}


def refused(dataset, capsys, *more):
    out = dataset.root.parent / "out"
    assert bids_app.main(dataset.command(out, *more)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert not list(out.glob("sub-*"))
    return line


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        (["--atlas-name", "A", "--atlas-name", "B"], r"--atlas is given 1 times and --atlas-name 2 times"),
        (["--atlas-labels", "a", "--atlas-labels", "b"], r"--atlas-labels is given 2 times for 1 atlases"),
        (["--subject-anatomical-reference", "unbiased"], r"unbiased needs a template .*: use first-lex or sessionwise"),
        (["--skull-stripped", "--skull-strip-t1w", "force"], r"--skull-stripped contradicts --skull-strip-t1w force"),
        (["--worker", "slurm", "--nthreads", "8"], r"--nthreads cannot be used with --worker slurm.* --omp-nthreads"),
        (["--worker", "slurm", "--mem", "16G"], r"--mem cannot be used with .*: give --slurm-args='--mem"),
        (["--worker", "slurm", "--stop-on-first-crash"], r"--stop-on-first-crash cannot be used .*: leave it out"),
        (["--sloppy", "--preset", "default"], r"--sloppy chooses a preset: leave out --preset"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_met_are_refused(dataset, capsys, more, pattern):
    assert re.search(pattern, refused(dataset, capsys, *more))


@pytest.mark.parametrize(
    ("spaces", "labels", "refusal"),
    [
        (["A", "anat", "A", "B"], 2, None),
        (["A", "anat", "A", "B"], 3, "--atlas-labels is given 3 times for 2 atlases"),
        (["fsaverage5", "anat"], 0, "--output-spaces fsaverage5 anat names no atlas: add a template"),
    ],
)
def test_only_templates_count_among_output_spaces_and_each_once(spaces, labels, refusal):
    options = argparse.Namespace(
        atlas=[], atlas_name=[], output_spaces=spaces, atlas_labels=["x"] * labels, atlas_mask=[]
    )
    with pytest.raises(InputError, match=refusal) if refusal else nullcontext():
        check_space_options(options)


def test_two_atlases_of_one_name_are_refused(dataset, capsys, tmp_path, write_image):
    image = nib.load(dataset.atlas)
    other = write_image(1.5 * image.get_fdata(dtype=np.float32), tmp_path / "other.nii.gz", image.affine)
    both = ["--atlas", str(dataset.atlas), "--atlas-name", "Tiny", "--atlas", str(other), "--atlas-name", "Tiny"]
    assert re.search(r"given \S+/atlas.nii.gz and \S+/other.nii.gz as Tiny, and names of transforms",
                     refused(dataset, capsys, *both, "--skull-stripped", "--atlas-labels", str(dataset.atlas_labels),
                             "--atlas-labels", str(dataset.atlas_labels)))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a1=/x/y", ("a1", Path("/x/y"))),
        ("/x/fmriprep-25.2", ("fmriprep252", Path("/x/fmriprep-25.2"))),
        ("/x/a=b", ("ab", Path("/x/a=b"))),
        ("prep/", ("prep", Path("prep"))),
    ],
)
def test_derivatives_have_a_name_or_that_of_their_folder(text, expected):
    assert named_path(text) == expected


@pytest.mark.parametrize("text", ["my_name=/x", "=x", "/", "a="])
def test_derivatives_without_a_usable_name_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        named_path(text)


def test_several_derivatives_stand_behind_one_option(dataset, tmp_path, capsys):
    more = ["-d", f"x={dataset.derivatives}", str(dataset.root.parent / "nothing")]
    assert re.search(r"/nothing is not a folder: expected the root of a BIDS dataset", refused(dataset, capsys, *more))


@pytest.mark.parametrize(("text", "mib"), [("16000", 16000), ("16G", 16384), ("1.5 TB", 1.5 * 2**20), ("512MiB", 512)])
def test_memory_has_units(text, mib):
    assert memory(text) == mib


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "1P"])
def test_an_amount_of_memory_that_makes_no_sense_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        memory(text)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ({}, None, (1, 4)),
        ({"nprocs": 2}, None, (2, 2)),
        ({"nprocs": 9}, None, (4, 1)),
        ({"nprocs": 9, "omp_nthreads": 1}, None, (9, 1)),
        ({}, "3", (1, 3)),
        ({}, "nonsense", (1, 4)),
        ({"nprocs": 2}, "2,1", (2, 2)),  # the second number is for nested threads
        ({"nthreads": 8}, None, (1, 8)),
        ({"nthreads": 8, "omp_nthreads": 2}, None, (4, 2)),
        ({"nthreads": 8, "omp_nthreads": 2, "nprocs": 3}, None, (3, 2)),
        ({"nthreads": 2, "omp_nthreads": 4}, None, (1, 2)),
        ({"nthreads": 8, "nprocs": 3}, None, (3, 2)),
        ({"nthreads": 2, "nprocs": 3}, None, (2, 1)),
        ({"nthreads": 2}, "3", (1, 2)),
        ({"nprocs": 3, "worker": "debug"}, None, (1, 4)),
        ({"nprocs": 3, "worker": "slurm"}, None, (3, None)),
    ],
)
def test_cores_are_shared_among_scans(monkeypatch, given, environment, expected):
    monkeypatch.setattr("nio_pydra.system.cores.core_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    options = {"nprocs": None, "omp_nthreads": None, "nthreads": None, "worker": None} | given
    assert _share_cores(argparse.Namespace(**options)) == expected
    if expected[1]:
        assert os.environ["OMP_NUM_THREADS"].split(",")[0] == str(expected[1])


def test_fewer_scans_at_a_time_than_asked_for_are_announced(dataset, capsys, monkeypatch):
    monkeypatch.setattr("nio_pydra.system.cores.core_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for number, words in (("50", 1), ("2", 0)):
        assert (
            bids_app.main(dataset.command(dataset.root.parent / "out", "--nprocs", number, "--boilerplate-only")) == 0
        )
        assert capsys.readouterr().out.count("2 at a time, not the 50 of --nprocs, because of threads") == words


def test_fewer_scans_are_registered_at_a_time_where_memory_is_limited(dataset, capsys, monkeypatch):
    monkeypatch.setattr("nio_pydra.workflows.dataset._run_subjects", lambda *rest: pytest.fail(f"{rest[3]} at a time"))
    arguments = dataset.command(
        dataset.root.parent / "out", "--engine", "nio_m", "--nprocs", "2", "--omp-nthreads", "1"
    )
    with pytest.raises(pytest.fail.Exception, match="2 at a time"):
        bids_app.main(arguments)
    with pytest.raises(pytest.fail.Exception, match="1 at a time"):
        bids_app.main([*arguments, "--mem", "1000"])
    assert "1 scan at a time, because each needs about" in capsys.readouterr().out


def test_no_scan_is_started_after_one_has_failed(dataset, write_image, capsys):
    path = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    scan = nib.load(path)
    write_image(0 * scan.get_fdata(dtype=np.float32), path, scan.affine)
    out = dataset.root.parent / "out"
    arguments = dataset.command(out, "--stop-on-first-crash")
    assert bids_app.main(arguments) == 1
    said = capsys.readouterr().out
    assert "sub-02: started" not in said
    assert "sub-02: not started, because another scan failed" in said
    assert "1 failed:" in said
    assert not list(out.glob("logs/sub-02*"))

    report = (out / "logs/sub-01_space-Tiny_desc-affine_error.txt").read_text()
    for words in (r"scan: +sub-01\n", r"atlas: +Tiny\n", r"image of the atlas: ",
                  r"image: +\S+/sub-01_T1w.nii.gz, \d+ bytes, shape \(24, 28, 24\), float32, affine \[\[6.0",
                  r"command: .",
                  r"versions: +nio_pydra \d", "torch ", r"machine: .*cores", r'"engine": "affine"',
                  "Traceback", "zero everywhere"):  # fmt: skip
        assert re.search(words, report)
    write_image(scan.get_fdata(dtype=np.float32), path, scan.affine)
    assert bids_app.main(arguments) == 0
    assert not list(out.glob("logs/sub-0*"))


def test_a_work_folder_is_cleaned_unless_another_run_uses_it(dataset, capsys, monkeypatch):
    arguments = dataset.command(dataset.root.parent / "out", "--participant-label", "01")
    assert bids_app.main(arguments) == 0
    assert bids_app.main(arguments) == 0
    assert capsys.readouterr().out.count("sub-01: started") == 1
    assert bids_app.main([*arguments, "--clean-workdir"]) == 0
    assert "sub-01: started" in capsys.readouterr().out
    with (dataset.root.parent / "work/nio_pydra/in_use").open() as marker:
        fcntl.flock(marker, fcntl.LOCK_SH)
        assert bids_app.main([*arguments, "--clean-workdir"]) == 1
        assert "--clean-workdir cannot delete" in capsys.readouterr().err
    assert bids_app.main(arguments) == 0
    assert "started" not in capsys.readouterr().out


@pytest.mark.parametrize("side", [(0, 9, 9), (-1, 9, 9), (9, 0, 9), (9, -1, 9), (9, 9, 0), (9, 9, -1)])
def test_skull_stripped_scans_are_told_by_their_outermost_voxels(dataset, write_image, side):
    path = dataset.root / "sub-01/anat/sub-01_T1w.nii.gz"
    assert background_is_zero(path)
    scan = nib.load(path).get_fdata(dtype=np.float32)
    scan[side] = 1
    write_image(scan, path)
    assert not background_is_zero(path)
    path.write_bytes(b"")
    assert not background_is_zero(path)


@pytest.mark.parametrize(
    ("choice", "sidecar", "stripped"),
    [("skip", False, True), ("auto", False, True), ("force", True, False), (None, False, False), (None, True, True)],
)
def test_brain_extraction_is_skipped_or_forced_whatever_sidecars_say(dataset, monkeypatch, choice, sidecar, stripped):
    (dataset.root / "T1w.json").write_text(json.dumps({"SkullStripped": sidecar}))
    asked = []

    def note(submit, common, waiting, *rest):
        asked.extend(own["skull_stripped"] for own in waiting.values())
        raise InputError("enough")

    monkeypatch.setattr("nio_pydra.workflows.dataset._run_subjects", note)
    more = ["--skull-strip-t1w", choice] if choice else []
    assert bids_app.main(dataset.command(dataset.root.parent / "out", *more)) == 1
    assert asked == [stripped, stripped]


def test_verbose_names_the_files_of_each_scan(two_atlases, capsys):
    command = two_atlases[1]
    line = r"sub-01: \S+/sub-01_T1w.nii.gz, mask none, lesion mask none, labels \S+_dseg.nii.gz, skull-stripped"
    assert bids_app.main(command) == 0
    assert not re.search(line, capsys.readouterr().out)
    assert bids_app.main([*command, "-v", "--notrack", "--skip_bids_validation"]) == 0
    assert re.search(line, capsys.readouterr().out)


def test_the_volume_change_is_written_on_request(dataset, bids_errors):
    out = dataset.root.parent / "out"
    arguments = dataset.command(out, "--participant-label", "01")
    path = out / "sub-01/anat/sub-01_space-Tiny_desc-jacobian_map.nii.gz"
    assert bids_app.main(arguments) == 0
    assert not path.exists()
    assert bids_app.main([*arguments, "--output-jacobian"]) == 0
    record = json.loads((out / "sub-01/anat/sub-01_space-Tiny_desc-affine_record.json").read_text())
    assert np.allclose(nib.load(path).get_fdata(), np.prod(record["affine"]["scales"]), rtol=1e-5)
    assert (
        "affine included"
        in json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["Description"]
    )
    assert bids_errors(out) == []


def test_the_former_name_of_the_mask_is_deleted_and_masks_of_others_are_kept(dataset):
    out = dataset.root.parent / "out"
    former = out / "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    arguments = dataset.command(out, "--participant-label", "01")
    assert bids_app.main(arguments) == 0
    for description, kept in (("Of another program.", True), ("Brain mask used for the registration.", False)):
        former.touch()
        former.with_name("sub-01_desc-brain_mask.json").write_text(json.dumps({"Description": description}))
        assert bids_app.main(arguments) == 0
        assert former.exists() is kept
        assert former.with_name("sub-01_desc-brain_mask.json").exists() is kept
    assert bids_app.main([*arguments, "--fmriprep-mask"]) == 0
    assert bids_app.main(arguments) == 0
    assert former.exists()
