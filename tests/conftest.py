"""What every test stands on: quiet drawing, few threads, the real scans, and the BIDS validator."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Before torch, ANTs or matplotlib is imported: each reads these once.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "2")
os.environ["MPLBACKEND"] = "Agg"

import pytest

# A shell makes what it runs in the background ignore interrupts; the processes that tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads in every test, whatever the one before it asked for: sums depend on their number."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(2)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans that cannot be part of this repository; the test is skipped where it is absent.

    The environment variable NIO_TEST_DATA names it; otherwise it is looked for beside the repository.
    """
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NIO_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}: set NIO_TEST_DATA to their folder")
    return folder.resolve()


@pytest.fixture(scope="session")
def bids_errors() -> Callable[[Path], list[str]]:
    """Function that gives the errors (not the warnings) that the BIDS validator finds in a dataset."""
    program = Path(sys.executable).with_name("bids-validator-deno")

    def validate(dataset: Path) -> list[str]:
        done = subprocess.run([program, "--json", dataset], capture_output=True, text=True, check=False)
        issues = json.loads(done.stdout)["issues"]["issues"]
        return [f"{issue['code']} {issue.get('location')}" for issue in issues if issue["severity"] == "error"]

    return validate
