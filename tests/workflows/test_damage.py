"""Files of an earlier run that were deleted, cut off or changed: the next run still gives the right results."""

import json
import re
import shutil

import pytest

import nio_pydra
from nio_pydra.cli import bids_app


@pytest.fixture(scope="module")
def earlier(tmp_path_factory, make_dataset):
    """A dataset, the folder of its run, and the derivatives by name."""
    folder = tmp_path_factory.mktemp("damage")
    dataset = make_dataset(folder, ["sub-01"])
    assert bids_app.main(dataset.command(folder / "out")) == 0
    shutil.copytree(folder / "work", folder / "whole/work")
    shutil.copytree(folder / "out", folder / "whole/out")
    right = derivatives(folder / "out")
    assert len(right) == 15
    return dataset, folder, right


@pytest.fixture
def run(earlier):
    """Function that runs the same command again, on the files of the earlier run."""
    dataset, folder, _ = earlier
    for name in ("work", "out"):
        shutil.rmtree(folder / name)
        shutil.copytree(folder / "whole" / name, folder / name)
    return lambda *more: bids_app.main(dataset.command(folder / "out", *more))


def derivatives(out):
    """Return the contents of all derivatives except the record, which holds times."""
    found = {path.name: path.read_bytes() for path in out.glob("sub-*/**/*.*")}
    return {name: content for name, content in found.items() if not name.endswith("_record.json")}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, empty, delete])
@pytest.mark.parametrize("jobs", ["workflow-*", "*"])
@pytest.mark.parametrize("kind", ["[!_]*", "_result.pklz"])
def test_damaged_files_in_the_work_folder_are_never_taken_for_results(earlier, run, damage, jobs, kind):
    _, folder, right = earlier
    files = [path for path in folder.glob(f"work/nio_pydra/pydra/{jobs}/{kind}") if path.is_file()]
    assert files
    for path in files:
        damage(path)
    assert run() == 0
    assert derivatives(folder / "out") == right


@pytest.mark.parametrize("damage", [truncate, delete])
def test_damaged_results_of_single_steps_are_not_used_for_another_output_folder(earlier, run, damage):
    dataset, folder, right = earlier
    files = [path for path in folder.glob("work/nio_pydra/pydra/python-*/*") if path.suffix != ".pklz"]
    assert files
    for path in files:
        damage(path)
    shutil.rmtree(folder / "other", ignore_errors=True)
    command = dataset.command(folder / "other")
    assert bids_app.main(command) == 0
    assert derivatives(folder / "other") == right


@pytest.mark.parametrize("damage", [truncate, empty, delete])
def test_damaged_derivatives_are_restored_without_computing(earlier, run, capsys, damage):
    _, folder, right = earlier
    for path in [*folder.glob("out/sub-*/**/*.*"), folder / "out/README", folder / "out/.bidsignore"]:
        damage(path)
    assert run() == 0
    assert "started" not in capsys.readouterr().out
    assert derivatives(folder / "out") == right


def test_results_of_other_code_are_not_used_and_records_name_the_code(earlier, run, capsys, monkeypatch):
    _, folder, right = earlier
    monkeypatch.setattr("nio_pydra.workflows.dataset.code_version", lambda: "another state")
    (record,) = folder.glob("out/sub-*/**/*_record.json")
    assert json.loads(record.read_text())["versions"]["nio_pydra"] == nio_pydra.__version__
    before = record.read_bytes()
    assert run() == 0
    assert "sub-01: started" in capsys.readouterr().out
    assert record.read_bytes() != before
    assert derivatives(folder / "out") == right


@pytest.mark.parametrize("content", ['{"engine": "aff', "[]", "null", "{}", "\xff"])
def test_a_damaged_record_stops_no_other_scan_and_is_named_by_the_group_level(earlier, run, capsys, content):
    dataset, folder, right = earlier
    anat = folder / "out/sub-77/anat"
    anat.mkdir(parents=True)
    record = anat / "sub-77_space-Tiny_desc-affine_record.json"
    record.write_text(content, encoding="latin-1")
    (anat / "sub-77_notes_record.json").write_text("somebody's own")
    assert run() == 0
    assert derivatives(folder / "out") == right
    capsys.readouterr()
    assert bids_app.main([str(dataset.root), str(folder / "out"), "group"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"nio-pydra: error: {re.escape(str(record))} .*: delete it and run its scan again.\n", said)
    record.unlink()
    assert bids_app.main([str(dataset.root), str(folder / "out"), "group"]) == 0
