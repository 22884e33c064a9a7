"""A BIDS dataset small enough to be registered in seconds: brains of three tissues on a 6 mm grid."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE = (24, 28, 24)
AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
AFFINE[:3, 3] = -3.0 * (np.array(SHAPE) - 1)


def brain(shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A skull-stripped scan and its labels 1 to 3; `shift` in mm along y and the seed of the noise."""
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 6.0 for n in SHAPE], indexing="ij")
    radius = np.sqrt((x / 60) ** 2 + ((y - shift) / 75) ** 2 + (z / 60) ** 2)
    labels = (radius < 1).astype(np.int16) + (radius < 0.7) + (radius < 0.35)
    noise = np.random.default_rng(int(shift)).normal(0, 3, SHAPE)
    scan = np.array([0, 80, 140, 40])[labels] + (labels > 0) * noise
    return scan.astype(np.float32), labels


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@dataclass(frozen=True)
class Dataset:
    """A raw dataset, its manual labels, and an atlas beside it."""

    root: Path
    derivatives: Path
    atlas: Path
    atlas_labels: Path

    def add(self, name: str, shift: float = 3.0) -> Path:
        """Add a scan named like ``sub-01_ses-a_run-1`` with labels; return its path."""
        parts = name.split("_")
        folder = Path(*[part for part in parts if part[:4] in ("sub-", "ses-")]) / "anat"
        scan, labels = brain(shift)
        save(labels, self.derivatives / folder / f"{name}_desc-malf_dseg.nii.gz")
        return save(scan, self.root / folder / f"{name}_T1w.nii.gz")

    def command(self, out: Path, *more: str) -> list[str]:
        """Arguments of a participant run with the affine engine; those in `more` come last and win."""
        return [
            str(self.root), str(out), "participant", "-w", str(out.parent / "work"),
            "--atlas", str(self.atlas), "--atlas-name", "Tiny", "--atlas-labels", str(self.atlas_labels),
            "-d", f"manual={self.derivatives}", "--labels-desc", "malf",
            "--engine", "affine", "--device", "cpu", *more,
        ]  # fmt: skip


def _make(folder: Path, names: Sequence[str] = ()) -> Dataset:
    scan, labels = brain()
    dataset = Dataset(
        root=folder / "raw",
        derivatives=folder / "manual",
        atlas=save(scan, folder / "atlas.nii.gz"),
        atlas_labels=save(labels, folder / "atlas_dseg.nii.gz"),
    )
    (folder / "atlas.json").write_text('{"SkullStripped": true}')
    description = {"Name": "tiny", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    derived = description | {"DatasetType": "derivative", "GeneratedBy": [{"Name": "Manual"}]}
    for root, content in ((dataset.root, description), (dataset.derivatives, derived)):
        root.mkdir()
        (root / "dataset_description.json").write_text(json.dumps(content))
    (dataset.root / "T1w.json").write_text('{"SkullStripped": true}')
    for number, name in enumerate(names, 1):
        dataset.add(name, 3.0 * number)
    return dataset


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """Return the function that makes a dataset in a folder, with scans of the given names."""
    return _make


@pytest.fixture(scope="session")
def write_image() -> Callable[..., Path]:
    """Return the function that writes an array as NIfTI: (array, path, affine)."""
    return save


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two subjects."""
    return _make(tmp_path, ["sub-01", "sub-02"])
