"""Registration by a module of this package in a process of its own.

The libraries of other programs read the seed and the number of threads from the environment once, before their first
call. A separate process gets them reliably, its peak memory is that of the registration alone, and a crash inside the
library does not end the caller. Images are passed as arrays with their geometry, because ITK and nibabel disagree on
which of a header's two affines counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.nifti1 import Nifti1Image

from nio_pydra.engines.memory import peak_memory_mb
from nio_pydra.engines.stopwatch import Spent
from nio_pydra.spatial.lps import itk_geometry
from nio_pydra.system.processes import run_python

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Runtime

__all__ = ["answer", "run_child", "store_images"]


def run_child(module: str, request: dict[str, Any], folder: Path, runtime: Runtime, *, name: str) -> dict[str, Any]:
    """Run the registration of a module in a process of its own, and return its result.

    Parameters
    ----------
    module : str
        Module that calls :func:`answer` when it is run.
    request : dict
        JSON values for the module's function.
    folder : Path
        Existing empty folder for all files of this run, including temporary files of the child.
    runtime : Runtime
        Seed and number of threads.
    name : str
        Name of the program in messages.

    Returns
    -------
    dict
        Result of the module's function, with ``spent`` as :class:`Spent` and ``peak_memory_mb``.

    Raises
    ------
    ProgramError
        If the child fails or is killed.
    """
    (folder / "request.json").write_text(json.dumps(request))
    environment = {
        # For ANTs, seed 0 means the time of day.
        "ANTS_RANDOM_SEED": str(runtime.seed + 1),
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(runtime.thread_count),
        "TMPDIR": str(folder),
    }
    result = folder / "result.json"
    run_python(
        ["-m", module, folder], result, name=name, folder=folder, log=folder / "log.txt", environment=environment
    )
    found: dict[str, Any] = json.loads(result.read_text())
    return found | {"spent": Spent(**found["spent"])}


def answer(work: Callable[[dict[str, Any], Path], tuple[Spent, dict[str, Any]]]) -> None:
    """Call a function with the request of :func:`run_child`, in the child, and send its result back.

    Parameters
    ----------
    work : callable
        Function of the request and the folder. It returns the time of the registration alone, and JSON values.
    """
    folder = Path(sys.argv[1])
    spent, found = work(json.loads((folder / "request.json").read_text()), folder)
    result = found | {"spent": asdict(spent), "peak_memory_mb": peak_memory_mb()}
    (folder / "result.json").write_text(json.dumps(result))


def store_images(images: Mapping[str, Nifti1Image], folder: Path) -> dict[str, dict[str, Any]]:
    """Store voxels ``(X, Y, Z)`` as float32 .npy files; return their paths and ITK geometry, as JSON values."""
    stored = {}
    for role, image in images.items():
        path = folder / f"{role}.npy"
        np.save(path, np.ascontiguousarray(image.get_fdata(dtype=np.float32, caching="unchanged")))
        spacing, origin, direction = (values.tolist() for values in itk_geometry(image.affine))
        stored[role] = {"path": str(path), "spacing": spacing, "origin": origin, "direction": direction}
    return stored
