"""Results of methods that nobody has run: tables by formula, images of the tiny dataset."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

from nio_pydra.bids.atlas import Atlas
from nio_pydra.comparison.results import MethodDescription, Results

SCANS = [f"sub-{number:02}" for number in range(1, 9)]


def _rows(name: str, level: float, smoothness: float, scans: Sequence[str]) -> list[dict]:
    return [
        {
            "method": name,
            "case": scan,
            "participant": scan,
            "status": "done",
            "dice_all": level * (1 + 0.02 * number),
            "dice_cortical": level * (1 + 0.02 * number) - 0.1,
            "dice_subcortical": level * (1 + 0.02 * number) + 0.1,
            "std_jacobian": smoothness,
            "fold_percent": 0.0,
            "fold_percent_raw": 0.25 if name == "network" else None,
            "inverse_error_median_mm": 0.05,
            "seconds": 20.0 + number,
            "processor_seconds": 35.0,
            "affine_seconds": 9.0,
            "device": "cpu",
            "threads": 2,
            "settings": '{"weight": 0.4}',
            "versions": '{"torch": "2.13"}',
        }
        for number, scan in enumerate(scans)
    ]


@pytest.fixture
def make_results(tmp_path: Path) -> Callable[..., Results]:
    """Return a function that makes results; its arguments replace what they name.

    Four settings of `smooth` are a sweep, `network` failed on the last scan and was not run on the one before, and
    `best` is the reference. Methods differ by the same factor in every case.
    """

    def make(scans: Sequence[str] = tuple(SCANS), **changes) -> Results:
        levels = {"affine": (0.4, 0.0), "network": (0.5, 0.6)}
        levels |= {f"smooth?weight={w}": (0.55 + 0.01 * w, s) for w, s in ((1, 0.30), (2, 0.10), (3, 0.20), (4, 0.40))}
        levels["best"] = (0.65, 0.5)
        methods = {
            name: MethodDescription(
                tmp_path / "derivatives" / name.replace("?", "-"), name.split("?")[0], "paper", f"Author of {name} 2020"
            )
            for name in levels
        }
        methods["network"] = MethodDescription(
            tmp_path / "derivatives" / "network",
            "network",
            "paper",
            "Doe 2021",
            weights="some.pth",
            training_data="cats",
        )
        rows = [
            row
            for name, (level, smoothness) in levels.items()
            for row in _rows(name, level, smoothness, scans[:-2] if name == "network" and len(scans) > 2 else scans)
        ]
        if len(scans) > 2:
            rows.append(
                {"method": "network", "case": scans[-1], "status": "failed", "reason": "no <b>memory</b> | left"}
            )
        labels = pd.DataFrame({"label": [1, 2, 101], "group": ["subcortical", "subcortical", "cortical"]})
        given = {
            "title": "Cats & dogs",
            "atlas": Atlas("Tiny", tmp_path / "atlas.nii.gz", None, None, True, "uri"),
            "scans": scans,
            "methods": methods,
            "reference": "best",
            "cases": pd.DataFrame(rows),
            "labels": labels,
            "left_out": {"absent": "it is not installed: pip install absent."},
            "command": "nio compare IN OUT",
            "machine": {"Processor": "abacus"},
        }
        return Results(**given | changes)

    return make


@pytest.fixture
def with_images(make_results, make_dataset, tmp_path: Path) -> Results:
    """Results of three scans whose images are those of the tiny dataset, not moved."""
    scans = ["sub-01", "sub-02", "sub-03"]
    dataset = make_dataset(tmp_path / "data", scans)
    atlas = Atlas("Tiny", dataset.atlas, None, dataset.atlas_labels, True, "uri")
    results = make_results(scans, atlas=atlas)
    for method in results.methods.values():
        for scan in scans:
            raw = dataset.root / scan / "anat" / f"{scan}_T1w.nii.gz"
            labels = dataset.derivatives / scan / "anat" / f"{scan}_desc-malf_dseg.nii.gz"
            folder = method.folder / scan / "anat"
            folder.mkdir(parents=True)
            shutil.copy(raw, folder / f"{scan}_space-Tiny_desc-{method.engine}_T1w.nii.gz")
            shutil.copy(labels, folder / f"{scan}_space-Tiny_desc-malf_dseg.nii.gz")
    return results
