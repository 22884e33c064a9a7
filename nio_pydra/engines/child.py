"""Modules of this package that register in a process of their own.

Other programs' libraries read seeds and numbers of threads from the environment once, before their first call. A
process of its own can be given them reliably, its peak memory is that of the registration alone, and a crash inside
the library does not end the caller. Images travel as arrays with their geometry, as ITK and nibabel disagree about
which of a header's two affines counts.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.nifti1 import Nifti1Image

from nio_pydra.engines.memory import peak_memory_mb
from nio_pydra.engines.stopwatch import Spent
from nio_pydra.errors import ProgramError
from nio_pydra.spatial.lps import itk_geometry
from nio_pydra.system.processes import last_lines, run_program

if TYPE_CHECKING:
    from nio_pydra.engines.contract import Runtime

__all__ = ["answer", "run_child", "store_image"]


def run_child(
    module: str,
    request: dict[str, Any],
    folder: Path,
    runtime: Runtime,
    *,
    name: str,
    threads: int | None = None,
) -> dict[str, Any]:
    """Let a module register in a process of its own, and return its answer.

    Parameters
    ----------
    module : str
        Module that calls :func:`answer` when it is run.
    request : dict
        JSON values.
    folder : Path
        An existing, empty folder that takes all files of this run, the child's temporary ones too.
    runtime : Runtime
        Gives the seed and the number of threads.
    name : str
        What the program is called in messages.
    threads : int, optional
        Overrides the number of `runtime`.

    Returns
    -------
    dict
        What the module's function returned, with ``spent`` as :class:`Spent` and ``peak_memory_mb``.

    Raises
    ------
    ProgramError
        If the child fails or is killed.
    """
    (folder / "request.json").write_text(json.dumps(request))
    environment = os.environ | {
        # ANTs takes seed 0 to mean "use the clock".
        "ANTS_RANDOM_SEED": str(runtime.seed + 1),
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads or runtime.thread_count),
        "TMPDIR": str(folder),
        # The child finds this package the way the parent did, installed or not.
        "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path),
    }
    log, result = folder / "log.txt", folder / "result.json"
    run_program([sys.executable, "-m", module, folder], name=name, folder=folder, log=log, environment=environment)
    if not result.exists():
        raise ProgramError(f"{name} left no result. The end of its output:\n{last_lines(log)}")
    found: dict[str, Any] = json.loads(result.read_text())
    return found | {"spent": Spent(**found["spent"])}


def answer(work: Callable[[dict[str, Any], Path], tuple[Spent, dict[str, Any]]]) -> None:
    """Serve :func:`run_child` in the child: the request goes to a function, what it returns goes back.

    Parameters
    ----------
    work : callable
        Takes the request and the folder; returns what the registration alone took, and JSON values.
    """
    folder = Path(sys.argv[1])
    spent, found = work(json.loads((folder / "request.json").read_text()), folder)
    result = found | {"spent": asdict(spent), "peak_memory_mb": peak_memory_mb()}
    (folder / "result.json").write_text(json.dumps(result))


def store_image(image: Nifti1Image, path: Path) -> dict[str, Any]:
    """Store voxels ``(X, Y, Z)`` as float32 .npy; return the path with the spacing, origin and direction of ITK."""
    np.save(path, np.ascontiguousarray(image.get_fdata(dtype=np.float32, caching="unchanged")))
    spacing, origin, direction = itk_geometry(image.affine)
    return {
        "path": str(path),
        "spacing": spacing.tolist(),
        "origin": origin.tolist(),
        "direction": direction.tolist(),
    }
