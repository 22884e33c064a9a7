"""The demo: its table, its picture, and the whole of it on one subject."""

import argparse
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from nio_pydra.cli import demo
from nio_pydra.report import Comparison, draw_comparisons

RESULT = demo.Result("sub-01", 0.561, 0.871, (4.7, 8.3), (1.2, 2.9), 0.31, 0.02, 41.4)


def _options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(words)


def test_table_says_simulated_and_gives_before_and_after():
    text = demo.table([RESULT], "nio_m")
    assert "SIMULATED" in text.splitlines()[0]
    assert "0.561 -> 0.871" in text
    assert "4.70 -> 1.20" in text


def test_picture_has_a_row_per_scan_and_shows_the_scan(tmp_path):
    labels = np.zeros((30, 36, 30), np.uint8)
    labels[5:25, 5:31, 5:25] = 1
    grid = nib.Nifti1Image(labels, np.diag([2, 2, 2, 1]))
    bright, dark = (nib.Nifti1Image(labels * np.float32(value), grid.affine) for value in (1, 0.2))
    error = nib.Nifti1Image(np.where(labels, 3.0, np.nan), grid.affine)
    row = Comparison("sub-01", bright, dark, error, error)
    half = nib.Nifti1Image(np.where(np.arange(36)[:, None] < 18, labels, np.float32(0.2)), grid.affine)

    def drawn(*rows):
        return imread(draw_comparisons(rows, grid, tmp_path / "x.png", title="SIMULATED", engine="nio_m"))

    one, two, other = drawn(row), drawn(row, row), drawn(replace(row, before=half))
    assert two.shape[0] > 1.5 * one.shape[0]
    assert two.shape[1] == one.shape[1]
    changed = np.flatnonzero((one != other).any(axis=(0, 2)))
    assert changed.size > 100 and changed.max() < one.shape[1] / 4  # the scan before is the first of four pictures


def test_bad_number_of_subjects_is_refused(capsys):
    with pytest.raises(SystemExit):
        _options("--subjects", "0")
    assert "argument --subjects: 0 is not a whole number above zero" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_finds_most_of_the_true_deformation(tmp_path, capsys):
    assert demo.main(_options("--out", str(tmp_path), "--subjects", "1")) == 0
    assert (tmp_path / "demo_nio_m.png").stat().st_size > 20_000
    text = (tmp_path / "demo_nio_m.txt").read_text()
    assert text in capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("sub-01")).split()
    dice_before, dice_after, error_before, error_after = (float(line[place]) for place in (1, 3, 4, 6))
    assert dice_after > dice_before + 0.15
    assert error_after < 0.6 * error_before
