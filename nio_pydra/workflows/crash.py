"""What a bug report needs about a scan that failed."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nibabel as nib
from nibabel.spatialimages import SpatialImage

from nio_pydra import __version__
from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan
from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.memory import machine_memory_mb
from nio_pydra.engines.methods import Method
from nio_pydra.spatial.images import UNREADABLE
from nio_pydra.system.cores import core_count, processor_name

__all__ = ["crash_report"]

PACKAGES = ("antspyx", "deepbet", "nibabel", "numpy", "pydra", "scipy", "torch")


def crash_report(scan: Scan, atlas: Atlas, method: Method, runtime: Runtime, failure: tuple[str, str]) -> str:
    """Return a text about a failed scan: what was run on which files and machine, and the traceback.

    Parameters
    ----------
    scan, atlas : Scan, Atlas
        Inputs of the registration.
    method : Method
        Engine and settings.
    runtime : Runtime
        Device, precision and seed.
    failure : tuple of str
        Why it failed, in a sentence and in full.
    """
    reason, details = failure
    images = {"image": scan.image, "its mask": scan.mask, "its lesion mask": scan.lesion, "its labels": scan.labels}
    images |= {"image of the atlas": atlas.image, "mask of the atlas": atlas.mask, "labels of the atlas": atlas.labels}
    lines = {
        "scan": scan.name,
        "atlas": atlas.label,
        "reason": reason,
        "command": shlex.join(sys.argv),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "method": json.dumps(method.record()),
        "runtime": f"device {runtime.device}, precision {runtime.precision}, seed {runtime.seed}, "
        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}",
        "versions": ", ".join([f"nio_pydra {__version__}", f"python {platform.python_version()}", *_packages()]),
        "machine": f"{platform.platform()}, {processor_name()}, {core_count()} cores, "
        f"{machine_memory_mb() / 2**10:.1f} GiB, load {os.getloadavg()[0]:.1f}",
        **{role: _described(path) for role, path in images.items() if path is not None and path.name},
    }
    width = max(map(len, lines)) + 2
    facts = "".join(f"{name + ':':{width}}{text}\n" for name, text in lines.items())
    return f"{facts}\n{details or reason}\n"


def _packages() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    return found


def _described(path: Path) -> str:
    """Return a file's path and size, and what its header says."""
    try:
        size = f"{path}, {path.stat().st_size} bytes"
    except OSError as error:
        return f"{path} ({error.strerror})"
    try:
        image: Any = nib.load(path)
    except UNREADABLE as error:
        return f"{size}, cannot be read: {error}"
    if not isinstance(image, SpatialImage):
        return size
    affine = None if image.affine is None else image.affine.round(4).tolist()
    return f"{size}, shape {image.shape}, {image.get_data_dtype()}, affine {affine}"
