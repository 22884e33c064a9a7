"""`nio dirlab`: from raw files to the table, on phantoms with the names and the format of DIR-Lab's files."""

import re

import numpy as np
import pandas as pd
import pytest

from nio_pydra.cli import nio
from nio_pydra.comparison.dirlab import CASES, Geometry

SMALL = Geometry((52, 40, 30), (6.0, 6.0, 8.0))
METHODS = "affine,lapirn:chest?voxel_size_mm=8.0"
RNG = np.random.default_rng(3)
POINTS = np.stack([RNG.integers(12, 20, 300), RNG.integers(14, 26, 300), RNG.integers(6, 20, 300)], axis=1)
MOTION = 1  # voxels towards the head, 8 mm


def phantom(shift, seed):
    x, y, z = np.indices(SMALL.shape)
    z = z + shift
    voxels = np.full(SMALL.shape, 24, np.int16)  # air, with DIR-Lab's offset
    voxels[((x - 26) / 24) ** 2 + ((y - 20) / 17) ** 2 < 1] = 1064
    for centre in (15, 37):
        lung = ((x - centre) / 8) ** 2 + ((y - 20) / 10) ** 2 + ((z - 14) / 12) ** 2 < 1
        texture = np.sin(x / 2) * np.cos(y / 2) * np.sin(z / 2)
        voxels[lung] = (200 + 80 * texture + np.random.default_rng(seed).normal(0, 5, SMALL.shape))[lung]
    return voxels


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """Two cases of DIR-Lab."""
    for number in (1, 2):
        monkeypatch.setitem(CASES, number, SMALL)
        folder = tmp_path / "data" / f"Case{number}Pack"
        (folder / "Images").mkdir(parents=True)
        for seed, (phase, shift) in enumerate((("T00", 0), ("T50", MOTION))):
            path = folder / "Images" / f"case{number}_{phase}_s.img"
            path.write_bytes(phantom(shift, seed).astype("<i2").tobytes(order="F"))
            points = POINTS + 1 - [0, 0, shift]
            np.savetxt(folder / f"Case{number}_300_{phase}_xyz.txt", points, fmt="%d", delimiter="\t")
    return tmp_path / "data"


def run(folder, out, *more):
    return nio.main(["dirlab", str(folder), str(out), "--engines", METHODS, "--device", "cpu", *more])


def test_cases_are_registered_once_and_written_beside_the_papers_numbers(unpacked, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(unpacked, out) == 0
    table = pd.read_csv(out / "cases.tsv", sep="\t").set_index(["case", "method"])
    assert list(table.index.get_level_values(0)) == [1, 1, 1, 2, 2, 2]
    assert table.loc[(1, "Initial"), "mean"] == pytest.approx(8.0)
    assert table.loc[(1, "affine"), "mean"] == pytest.approx(8.0)  # no affine is computed
    assert table.loc[(1, METHODS.split(",")[1]), "mean"] < 7.9
    summary = (out / "summary.md").read_text()
    assert "| 1 | 8.00 ± 0.00 | 3.89 ± 2.78 | 8.00 ± 0.00 |" in summary and "1.05 ± 0.47" in summary
    assert summary in capsys.readouterr().out
    assert not list(out.rglob("*T00*"))  # no copy of the images is left
    records = {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    assert len(records) == 4
    assert run(unpacked, out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("record.json")} == records
    changed = out / "case_01" / "affine" / "record.json"
    changed.write_text(changed.read_text().replace('"engine": "affine"', '"engine": "other"'))
    assert run(unpacked, out) == 0
    assert '"engine": "affine"' in changed.read_text()


def test_a_case_that_cannot_be_used_does_not_stop_the_others(unpacked, tmp_path, caplog):
    image = unpacked / "Case1Pack" / "Images" / "case1_T50_s.img"
    image.write_bytes(image.read_bytes()[:-2])
    (unpacked / "Case2Pack" / "Case2_300_T50_xyz.txt").unlink()
    out = tmp_path / "out"
    assert run(unpacked, out) == 1
    assert "case1_T50_s.img has 124798 bytes: expected 124800" in caplog.text
    image.write_bytes(phantom(MOTION, 1).astype("<i2").tobytes(order="F"))
    points = [unpacked / "Case1Pack" / f"Case1_300_{phase}_xyz.txt" for phase in ("T00", "T50")]
    texts = [path.read_text() for path in points]
    for path, text in zip(points, reversed(texts), strict=True):
        path.write_text(text)
    assert run(unpacked, out) == 1
    summary = (out / "summary.md").read_text()
    assert "| 1 | 8.00 ± 0.00" in summary
    assert "no 300 landmarks (.txt) of case 2 at phase T50" in summary
    assert re.search(
        r"case 1, lapirn\S* the landmarks are farther apart after .* than before \(8\.00 mm\)", caplog.text
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cases", "11"], "DIR-Lab has no case 11: expected numbers from 1 to 10"),
        (
            ["--cases", "3", "--engines", "nio_m:chest?network.iterations=[2, 0, 0],affine"],
            r"has no image of case 3 \(case3_T00",
        ),
    ],
)
def test_wrong_cases_are_one_sentence(unpacked, tmp_path, capsys, words, sentence):
    assert run(unpacked, tmp_path / "out", *words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(sentence, said)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_one_sentence(tmp_path, capsys):
    assert run(tmp_path / "absent", tmp_path / "out") == 1
    assert "absent: no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "out") == 1
    assert "has no image of a case (case1_T00*.img)" in capsys.readouterr().err
