"""Bad input to the BIDS App: one clear sentence, exit status 1, no incomplete files, all other subjects done."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nio_pydra.cli import bids_app

BAD = {
    "unfetched": r"no such file; is it a link to content that was not fetched",
    "empty": r"empty \(0 bytes\)",
    "truncated": r"truncated or damaged",
    "fourd": r"shape \(24, 28, 24, 5\): expected a 3-D image",
    "twod": r"expected a 3-D image",
    "nan": r"7 NaN or infinite voxels",
    "zero": r"zero everywhere",
    "singular": r"cannot be inverted",
    "labelgrid": r"labels.* expected the same grid",
    "emptymask": r"mask.* is empty",
    "maskbeside": r"brain mask.* lies outside",
    "lesionbeside": r"lesion mask.* lies outside",
    "sidecar": r"sub-sidecar_T1w.json cannot be read as JSON",
    "twomasks": r"There are 2 files for one scan",
    "twoscans": r"would get the same output names",
}


FILES = 13
"""Files of a scan with labels."""


def damage(dataset, kind, write_image):
    """Add subject `kind` to the dataset, and damage one of its files."""
    path = dataset.add(f"sub-{kind}")
    image = nib.load(path)
    data, affine = image.get_fdata(dtype=np.float32), image.affine
    derived = dataset.derivatives / f"sub-{kind}/anat"
    mask = derived / f"sub-{kind}_desc-brain_mask.nii.gz"
    if kind == "unfetched":
        path.unlink()
        path.symlink_to(".git/annex/absent.nii.gz")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "fourd":
        write_image(np.stack([data] * 5, axis=-1), path, affine)
    elif kind == "twod":
        write_image(data[12], path, affine)
    elif kind == "nan":
        data[3, 4, :7] = np.nan
        write_image(data, path, affine)
    elif kind == "zero":
        write_image(0 * data, path, affine)
    elif kind == "singular":
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[280:328] = bytes(48)  # the three rows of the sform
        path.write_bytes(gzip.compress(content))
    elif kind == "labelgrid":
        write_image(np.ones((24, 28, 20), np.int16), derived / f"sub-{kind}_desc-malf_dseg.nii.gz", affine)
    elif kind == "emptymask":
        write_image(np.zeros(data.shape, np.uint8), mask, affine)
    elif kind in ("maskbeside", "lesionbeside"):
        shifted = affine.copy()
        shifted[0, 3] += 1000
        lesion = mask.with_name(mask.name.replace("brain", "lesion"))
        write_image(np.ones(data.shape, np.uint8), mask if kind == "maskbeside" else lesion, shifted)
    elif kind == "sidecar":
        path.with_name(f"sub-{kind}_T1w.json").write_text("{")
    elif kind == "twomasks":
        for name in (mask.name, mask.name.replace("desc", "space-orig_desc")):
            mask.with_name(name).touch()
    elif kind == "twoscans":
        path.with_name(f"sub-{kind}_T1w.nii").touch()
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, make_dataset, write_image):
    """Ended run of a dataset with two good subjects and all kinds of bad ones, and its output folder."""
    folder = tmp_path_factory.mktemp("mixed")
    dataset = make_dataset(folder, ["sub-good", "sub-hale"])
    for kind in BAD:
        damage(dataset, kind, write_image)
    out = folder / "out"
    ended = run(dataset.command(out, "--nprocs", "4", "--omp-nthreads", "1"))
    return ended, out


def run(arguments, **options):
    """Run the app in a process of its own."""
    code = "import sys; from nio_pydra.cli.bids_app import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, **options
    )


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_subject_gets_one_clear_sentence_and_no_files(mixed, kind):
    ended, out = mixed
    reasons = [line for line in ended.stdout.splitlines() if re.search(rf"  sub-{kind}: ", line)]
    assert len(reasons) == 1
    assert re.search(BAD[kind], reasons[0])
    assert f"sub-{kind}" in reasons[0].split(": ", 1)[1]  # the sentence names the file
    assert not (out / f"sub-{kind}").exists()


def test_bad_subjects_leave_the_others_done(mixed):
    ended, out = mixed
    assert ended.returncode == 1
    assert f"2 of {len(BAD) + 2} scans done" in ended.stdout
    for name in ("good", "hale"):
        assert len(list((out / f"sub-{name}/anat").iterdir())) == FILES
    assert not list(out.rglob(".tmp*"))


def test_bad_subjects_show_no_traceback_but_leave_one_in_the_logs(mixed):
    ended, out = mixed
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "Traceback" in (out / "logs/sub-empty_space-Tiny_desc-affine_error.txt").read_text()


@pytest.mark.slow
def test_a_repaired_subject_is_done_by_the_next_run(dataset, write_image, capsys):
    out = dataset.root.parent / "out"
    path = damage(dataset, "nan", write_image)
    assert bids_app.main(dataset.command(out, "--participant-label", "nan", "01")) == 1
    write_image(np.nan_to_num(nib.load(path).get_fdata(dtype=np.float32)), path)
    capsys.readouterr()
    assert bids_app.main(dataset.command(out, "--participant-label", "nan", "01")) == 0
    said = capsys.readouterr().out
    assert "sub-nan: done" in said
    assert "sub-01: started" not in said


@pytest.mark.slow
def test_published_dataset_of_empty_scans_fails_with_a_sentence_each(dataset, real_data, tmp_path, capsys):
    arguments = dataset.command(tmp_path / "empty_out", "--participant-label", "01", "16")
    arguments[0] = str(real_data / "bids_ds005/ds005")
    assert bids_app.main(arguments) == 1
    said = capsys.readouterr().out
    for label in ("01", "16"):
        assert re.search(rf"  sub-{label}: .*sub-{label}_T1w.nii.gz .*empty \(0 bytes\)", said)


def contents(folder):
    """Return all that a folder holds, by path."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(capsys, dataset, arguments, pattern, *, begun=False):
    """Run the app; check that it says one line, and changes nothing where its folders and its inputs lie.

    A run that has `begun` leaves a described output folder without results, and a work folder.
    """
    before = contents(dataset.root.parent)
    assert before
    assert bids_app.main(arguments) == 1
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("nio-pydra: error: ")
    assert re.search(pattern, lines[0])
    after = contents(dataset.root.parent)
    if begun:
        out, work = Path(arguments[1]), Path(arguments[arguments.index("-w") + 1])
        assert (out / "dataset_description.json").is_file() and not list(out.glob("sub-*"))
        after = {path: held for path, held in after.items() if not {out, work} & {path, *path.parents}}
    assert after == before


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        (["--participant-label", "01", "sub-99"], r"no participant 99: it has 01, 02"),
        (["--session-label", "x"], r"no session x: it has none"),
        (["--preset", "nonsense"], r"affine has no preset nonsense: choose one of default"),
        (["--weights", "w.safetensors"], r"affine uses no network: leave out the weights"),
        (["--engine", "lapirn", "--weights", "absent.safetensors"], r"absent.safetensors: no such weights file"),
        (["--atlas", "absent.nii.gz"], r"absent.nii.gz \(atlas\): no such file"),
        (["--atlas-name", "my_atlas"], r"'my_atlas' cannot be part of a BIDS file name"),
        (["-d", "other=/nonexistent"], r"/nonexistent is not a folder"),
        (["--bids-filter-file", "absent.json"], r"absent.json: no such file\.$"),
        (["--participant-label", "02", "--session-label", "x"], r"no session x of participant 02: found none"),
        *(
            (["--atlas-name", name], rf"--atlas-name {re.escape(name)} cannot be told from the scan")
            for name in ("T1w", "t2w", "scanner", "T1w+1", "fsaverage6")
        ),
    ],
)
def test_an_option_that_cannot_be_met_is_refused_before_any_work(dataset, capsys, more, pattern):
    refused(capsys, dataset, dataset.command(dataset.root.parent / "out", *more), pattern)


def test_slurm_is_refused_where_it_is_not_installed(dataset, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    arguments = dataset.command(dataset.root.parent / "out", "--worker", "slurm")
    refused(capsys, dataset, arguments, r"needs the command sbatch")


@pytest.mark.slow
def test_an_unknown_template_is_refused_with_the_list_of_those_there_are(dataset, capsys, tmp_path):
    arguments = [str(dataset.root), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "w")]
    refused(capsys, dataset, [*arguments, "--template", "NoSuchTemplate"], r"no template NoSuchTemplate: it has .*MNI")


@pytest.mark.slow
def test_a_template_that_cannot_be_downloaded_is_refused(dataset, tmp_path):
    arguments = [str(dataset.root), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "w")]
    # TemplateFlow reads its folder once per process; a proxy that refuses stands for a machine that is offline.
    offline = {"TEMPLATEFLOW_HOME": str(tmp_path / "tf"), "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    ended = run([*arguments, "--template", "MNI152NLin2009cAsym"], env=os.environ | offline)
    assert ended.returncode == 1
    errors = [line for line in ended.stderr.splitlines() if "error" in line]
    assert len(errors) == 1
    assert re.search(r"MNI152NLin2009cAsym is not in .*/tf and cannot be downloaded", errors[0])
    assert "Traceback" not in ended.stderr


def test_no_atlas_at_all_is_refused(dataset, capsys, tmp_path):
    refused(
        capsys,
        dataset,
        [str(dataset.root), str(tmp_path / "out"), "participant"],
        r"No atlas was chosen: give --output-spaces NAME",
    )


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        (["--atlas", "a.nii.gz"], r"--atlas a\.nii\.gz has no name for BIDS file names: give --atlas-name"),
        (["--atlas-name", "A"], r"--atlas-name A names no image: give it with --atlas IMAGE"),
    ],
)
def test_an_atlas_that_lacks_its_image_or_its_name_is_refused_with_what_is_missing(
    dataset, capsys, tmp_path, more, pattern
):
    refused(capsys, dataset, [str(dataset.root), str(tmp_path / "out"), "participant", *more], pattern)


def test_a_dataset_without_t1w_is_refused(dataset, capsys):
    for path in dataset.root.rglob("*_T1w.nii.gz"):
        path.rename(path.with_name(path.name.replace("T1w", "T2w")))
    refused(capsys, dataset, dataset.command(dataset.root.parent / "out"), r"has no T1w image: expected files named")


def test_a_filter_that_leaves_nothing_is_refused_and_named(dataset, capsys, tmp_path):
    (tmp_path / "filter.json").write_text('{"t1w": {"acquisition": "fast"}}')
    more = ["--bids-filter-file", str(tmp_path / "filter.json")]
    refused(capsys, dataset, dataset.command(dataset.root.parent / "out", *more), r"no T1w image with acquisition=fast")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [(None, r"has no dataset_description.json"), ("{", r"dataset_description.json cannot be read as JSON")],
)
def test_a_folder_that_is_no_bids_dataset_is_refused(dataset, capsys, content, pattern):
    description = dataset.root / "dataset_description.json"
    description.unlink()
    if content is not None:
        description.write_text(content)
    refused(capsys, dataset, dataset.command(dataset.root.parent / "out"), pattern)


def test_a_run_that_is_refused_leaves_no_folders(dataset, capsys):
    out = dataset.root.parent / "out"
    refused(capsys, dataset, dataset.command(out, "--participant-label", "99"), "no participant 99")
    assert not out.exists() and not (out.parent / "work").exists()


def test_a_dataset_that_does_not_exist_is_refused(dataset, capsys):
    arguments = dataset.command(dataset.root.parent / "out")
    arguments[0] = "/nonexistent"
    refused(capsys, dataset, arguments, r"/nonexistent is not a folder")


@pytest.mark.parametrize("option", ["output folder", "work folder"])
def test_a_folder_that_cannot_be_written_is_refused(dataset, capsys, option):
    blocked = dataset.atlas / "below_a_file"
    arguments = dataset.command(dataset.root.parent / "out")
    arguments[1 if option == "output folder" else arguments.index("-w") + 1] = str(blocked)
    refused(capsys, dataset, arguments, rf"The {option} .*below_a_file cannot be written")


FMRIPREP = {"Name": "x", "BIDSVersion": "1.4.0", "GeneratedBy": [{"Name": "fMRIPrep"}]}
FOREIGN = {
    "another generator": ({"dataset_description.json": json.dumps(FMRIPREP)}, "holds the dataset of fMRIPrep"),
    "two generators": (
        {"dataset_description.json": json.dumps(FMRIPREP | {"GeneratedBy": [{"Name": "nio_pydra"}, {"Name": "b"}]})},
        "holds the dataset of b",
    ),
    "no generator": ({"dataset_description.json": '{"Name": "x"}'}, "of a program that it does not name"),
    "null": (
        {"dataset_description.json": "null"},
        "holds no JSON object in braces: the program that made the output folder is unknown",
    ),
    "half a description": ({"dataset_description.json": '{"Gene'}, "cannot be read as JSON"),
    "derivatives alone": ({"sub-07/anat/sub-07_desc-brain_mask.nii.gz": "mask"}, "holds sub-07 and no dataset_desc"),
    "readme alone": ({"README": "notes"}, "holds README and no dataset_description.json"),
    "ignore file alone": ({".bidsignore": "x"}, "holds .bidsignore and no dataset_description.json"),
}


@pytest.mark.parametrize("level", ["participant", "group"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_an_output_folder_that_is_not_ours_is_refused_and_left_as_it_is(dataset, capsys, kind, level):
    files, pattern = FOREIGN[kind]
    out = dataset.root.parent / "theirs"
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    before = contents(dataset.root.parent)
    arguments = dataset.command(out)
    arguments[2] = level
    assert bids_app.main(arguments) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(rf"{pattern}.*give an output folder of its own", said)
    assert contents(dataset.root.parent) == before


@pytest.mark.parametrize("level", ["participant", "group"])
@pytest.mark.parametrize("spelling", ["plain", "link", "dots"])
@pytest.mark.parametrize("which", ["root", "derivatives"])
@pytest.mark.parametrize("role", ["output", "work"])
def test_a_folder_that_is_read_is_not_written(dataset, capsys, monkeypatch, level, spelling, which, role):
    target = getattr(dataset, which)
    ours = json.dumps(FMRIPREP | {"GeneratedBy": [{"Name": "nio_pydra"}]})
    (target / "dataset_description.json").write_text(ours)  # as if it were an earlier output of this program
    (target.parent / "link").symlink_to(target)
    monkeypatch.chdir(target.parent)
    given = {"plain": target, "link": Path("link"), "dots": target / "sub-01/.."}[spelling]
    arguments = dataset.command(dataset.root.parent / "out")
    arguments[1 if role == "output" else arguments.index("-w") + 1] = str(given)
    arguments[2] = level
    (dataset.root.parent / "out").mkdir()
    before = contents(dataset.root.parent)
    assert bids_app.main(arguments) == 1
    said = capsys.readouterr().err
    assert re.search(rf"The {role} folder .* is (the dataset itself|-d manual=.*): give a folder of its own", said)
    assert contents(dataset.root.parent) == before


def test_a_participants_folder_of_the_dataset_is_no_output_folder(dataset, capsys):
    assert bids_app.main(dataset.command(dataset.root / "sub-01/out")) == 1
    assert "lies in a participant's folder of the dataset itself" in capsys.readouterr().err
    assert not (dataset.root / "sub-01/out").exists()


def test_results_of_another_dataset_or_atlas_are_not_replaced(dataset, make_dataset, write_image, tmp_path, capsys):
    out = tmp_path / "out"
    assert bids_app.main(dataset.command(out, "--participant-label", "01")) == 0
    before = contents_of(out)
    (tmp_path / "other").mkdir()
    other = make_dataset(tmp_path / "other", ["sub-01"])
    assert bids_app.main(other.command(out, "-w", str(tmp_path / "work2"))) == 1
    assert f"holds results of the dataset {dataset.root}" in capsys.readouterr().err
    image = nib.load(dataset.atlas)
    atlas = write_image(1.5 * image.get_fdata(dtype=np.float32), tmp_path / "second.nii.gz", image.affine)
    assert bids_app.main(dataset.command(out, "--atlas", str(atlas), "--skull-stripped")) == 1
    assert "holds results for another image called Tiny" in capsys.readouterr().err
    assert contents_of(out) == before
    # A dataset that was moved is the same one.
    shutil.move(dataset.root, tmp_path / "moved")
    arguments = dataset.command(out, "--participant-label", "01")
    arguments[0] = str(tmp_path / "moved")
    assert bids_app.main(arguments) == 0


def contents_of(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "logs" not in path.parts}


@pytest.mark.parametrize("held", [[], ["logs/nio-pydra_1.log"], ["work/nio_pydra/pydra/x"]])
def test_an_output_folder_that_a_killed_run_began_is_taken(dataset, held, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in held:
        (out / name).parent.mkdir(parents=True)
        (out / name).touch()
    assert bids_app.main(dataset.command(out, "--participant-label", "01")) == 0
    assert len(list((out / "sub-01/anat").iterdir())) == FILES


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        (["-d", "raw={}"], r"-d raw=.*: raw stands for the dataset itself"),
        (["-d", "Raw={}"], r"-d Raw=.*: Raw stands for the dataset itself"),
        (["-d", "x={}", "-d", "x=/nonexistent"], r"-d x=/nonexistent: x=.* has that name already"),
        (["-d", "MANUAL={}"], r"-d MANUAL=.*: manual=.* has that name already"),
    ],
)
def test_names_of_derivatives_that_clash_are_refused(dataset, capsys, more, pattern):
    more = [word.format(dataset.derivatives) for word in more]
    refused(capsys, dataset, dataset.command(dataset.root.parent / "out", *more), pattern)


def test_atlas_labels_on_another_grid_are_refused(dataset, capsys, write_image):
    write_image(np.ones((10, 10, 10), np.int16), dataset.atlas_labels)
    refused(
        capsys, dataset, dataset.command(dataset.root.parent / "out"), r"atlas_dseg.nii.gz .*expected the same grid"
    )


def test_more_scans_at_a_time_than_memory_holds_are_refused(dataset, capsys, monkeypatch):
    monkeypatch.setattr("nio_pydra.engines.memory.machine_memory_mb", lambda: 2**9)
    arguments = dataset.command(
        dataset.root.parent / "out", "--engine", "nio_m", "--nprocs", "8", "--omp-nthreads", "1"
    )
    # There are two scans, so two are registered at a time.
    pattern = r"About \d+\.\d GiB are needed for 2 .* this machine has 0\.5 GiB: use --nprocs 1"
    refused(capsys, dataset, arguments, pattern, begun=True)


def test_an_empty_atlas_mask_is_refused(dataset, capsys, write_image):
    mask = write_image(np.zeros((24, 28, 24), np.uint8), dataset.root.parent / "mask.nii.gz")
    refused(
        capsys,
        dataset,
        dataset.command(dataset.root.parent / "out", "--atlas-mask", str(mask)),
        r"mask.nii.gz .*is empty",
    )


def test_weights_of_another_network_are_refused(dataset, capsys, tmp_path):
    import torch
    from safetensors.torch import save_file

    torch.save({"conv.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    save_file({"conv.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    out = dataset.root.parent / "out"
    for name, pattern in (("other.pth", "another network"), ("other.safetensors", "no nio_pydra metadata")):
        more = ["--engine", "lapirn", "--weights", str(tmp_path / name)]
        refused(capsys, dataset, dataset.command(out, *more), rf"{name} holds .*{pattern}")


def test_results_of_two_engines_are_not_mixed_in_one_folder(dataset, capsys):
    out = dataset.root.parent / "out"
    assert bids_app.main(dataset.command(out, "--participant-label", "01")) == 0
    before = contents_of(out)
    assert len(before) > FILES
    capsys.readouterr()
    assert bids_app.main(dataset.command(out, "--engine", "syn")) == 1
    assert "holds results of the engine affine for Tiny" in capsys.readouterr().err
    assert contents_of(out) == before


def test_group_level_without_records_is_refused(dataset, capsys, tmp_path):
    (tmp_path / "out").mkdir()
    refused(capsys, dataset, [str(dataset.root), str(tmp_path / "out"), "group"], r"no registration records: run the")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "processes"), [(signal.SIGINT, "1"), (signal.SIGKILL, "2")])
def test_a_run_ended_half_way_goes_on_where_it_was(tmp_path, make_dataset, processes, number):
    dataset = make_dataset(tmp_path, ["sub-01", "sub-02", "sub-03", "sub-04"])
    out = tmp_path / "out"
    arguments = dataset.command(out, "--nprocs", processes, "--omp-nthreads", "1")
    code = "import sys; from nio_pydra.cli.bids_app import main; sys.exit(main(sys.argv[1:]))"
    first = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    done = []
    for line in first.stdout:
        done += re.findall(r"(sub-\d+): done", line)
        if done:
            break
    os.killpg(first.pid, number) if number == signal.SIGINT else first.kill()
    assert first.wait(timeout=60) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    first.stdout.close()

    # What a kill leaves now and then, or always if the run goes on on another host: locks that look alive.
    for job in (out.parent / "work/nio_pydra/pydra").glob("workflow-*"):
        job.with_suffix(".lock").touch()
    for entry in list((out.parent / "work/nio_pydra/hashes").iterdir()):
        entry.with_suffix(".lock").touch()

    second = run(arguments)
    assert second.returncode == 0
    started = re.findall(r"(sub-\d+): started", second.stdout)
    assert done[0] not in started
    assert started, "the first run was not ended half-way"
    assert "4 of 4 scans done" in second.stdout
    for label in ("01", "02", "03", "04"):
        files = list((out / f"sub-{label}/anat").iterdir())
        assert len(files) == FILES
        assert all(nib.load(path).get_fdata().any() for path in files if path.name.endswith(".nii.gz"))
        assert all(json.loads(path.read_text()) for path in files if path.suffix == ".json")
