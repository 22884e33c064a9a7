"""Job arrays of SLURM: what a job asks for, its script, and what it does on its node.

One task of an array runs the `Subject` workflow of one scan from beginning to end.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nibabel.nifti1 import Nifti1Image

from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.memory import UNKNOWN_MB
from nio_pydra.engines.methods import Method
from nio_pydra.errors import InputError, ProgramError
from nio_pydra.system import slurm
from nio_pydra.system.files import write_text
from nio_pydra.system.wording import counted
from nio_pydra.tasks.inputs import code_version
from nio_pydra.workflows.cache import failure_reason, in_use
from nio_pydra.workflows.pydra_private import Submitter, own_holder, use_work_folder
from nio_pydra.workflows.subject import Subject
from nio_pydra.workflows.workers import SerialWorker

__all__ = ["Resources", "resources_of", "run_scan", "same_scans", "submit_array"]

log = logging.getLogger("nio_pydra")

INPUTS = "scans.pkl"
LIBRARIES_MB, CUDA_MB, LEAST_MB = 1024.0, 4096.0, 4096.0
"""Memory of the process around an engine, of CUDA on the host, of any job."""
MEMORY_MARGIN = 1.2
BYTES_PER_SCAN_VOXEL = 100.0
OTHER_MINUTES = 30.0
"""Time of all but the registration: mask, affine, inverse, measures, files."""


@dataclass(frozen=True)
class Resources:
    """What the job of one scan asks for.

    Attributes
    ----------
    cpus : int
        Number of CPUs.
    memory_mb : int
        Memory in MiB, a multiple of 1024.
    minutes : int
        Time limit.
    gpus : int
        Number of GPUs.
    threads : int or None
        Number of threads. None: the CPUs that the job was given.
    """

    cpus: int
    memory_mb: int
    minutes: int
    gpus: int = 0
    threads: int | None = None

    def __str__(self) -> str:
        gpu = ", 1 GPU" if self.gpus else ""
        return f"{self.cpus} CPU(s), {self.memory_mb // 1024} GiB, {self.minutes} min{gpu}"


def resources_of(
    method: Method, runtime: Runtime, fixed_object: Nifti1Image, scan_voxels: int, threads: int | None
) -> Resources:
    """Return what the job of one scan needs, by the engine's own prediction.

    Parameters
    ----------
    method : Method
        Engine and settings.
    runtime : Runtime
        Device. Only ``cuda`` asks for a GPU, because ``auto`` cannot know what a node has.
    fixed_object : Nifti1Image
        Atlas without its background.
    scan_voxels : int
        Voxels of the largest scan.
    threads : int or None
        Number of threads asked for. None: that of the engine.
    """
    gpu = runtime.device == "cuda"
    # The node may have another processor than this machine, and this machine may have no GPU.
    cautious = replace(runtime, device="cpu", precision="float32")
    predicted = method.engine.memory_mb(fixed_object, method.settings, cautious)
    needed = CUDA_MB if gpu else UNKNOWN_MB if predicted is None else predicted.process
    needed = max(LEAST_MB, MEMORY_MARGIN * (needed + LIBRARIES_MB + BYTES_PER_SCAN_VOXEL * scan_voxels / 2**20))
    cpus = threads or method.engine.threads
    minutes = OTHER_MINUTES + method.engine.processor_minutes(method.settings) / cpus
    return Resources(cpus, 1024 * math.ceil(needed / 1024), 5 * math.ceil(minutes / 5), int(gpu), threads)


def submit_array(
    scans: Mapping[str, dict[str, Any]], folder: Path, resources: Resources, options: str, at_a_time: int | None
) -> str:
    """Submit a job array, one task for each scan, and note it in the folder of the run.

    Parameters
    ----------
    scans : mapping of str to dict
        Inputs of the `Subject` workflow by name of the scan.
    folder : Path
        Folder of the run, shared with the nodes. It takes ``array_<number>.json`` and a folder for the array.
    resources : Resources
        What each job asks for.
    options : str
        Options of sbatch, as in a shell.
    at_a_time : int or None
        Largest number of jobs that run at the same time.

    Returns
    -------
    str
        Number of the array.

    Raises
    ------
    ProgramError
        If SLURM refuses it. Nothing of it is left then.
    """
    part = folder / f"part-{len(list(folder.glob('part-*'))) + 1}"
    part.mkdir(parents=True)
    (part / INPUTS).write_bytes(pickle.dumps({"code": code_version(), "scans": dict(scans)}))
    script = part / "job.sh"
    script.write_text(_script(part, resources, options))
    try:
        number = slurm.submit(
            script, len(scans), at_a_time,
            ["--job-name=nio-pydra", f"--output={_pattern(part)}/%A_%a.log", *shlex.split(options)],
        )  # fmt: skip
    except ProgramError:
        shutil.rmtree(part)
        raise
    try:
        write_text(json.dumps({"part": part.name, "scans": list(scans)}), folder / f"array_{number}.json")
    except BaseException:  # a job that nobody knows of must not go on
        slurm.cancel([number])
        raise
    log.info(
        "SLURM job %s: %s, %s for each%s; logs in %s",
        number, counted(len(scans), "scan"), resources, f", unless changed by {options}" if options else "", part,
    )  # fmt: skip
    return number


def same_scans(part: Path, scans: Mapping[str, dict[str, Any]]) -> dict[int, str]:
    """Return the scans that tasks of an array register by this code and from the given inputs.

    Parameters
    ----------
    part : Path
        Folder of the array.
    scans : mapping of str to dict
        Inputs of the `Subject` workflow by name of the scan.

    Returns
    -------
    dict of int to str
        Names by number of the task.
    """
    given = pickle.loads((part / INPUTS).read_bytes())
    if given["code"] != code_version():
        return {}
    return {index: name for index, (name, own) in enumerate(given["scans"].items()) if scans.get(name) == own}


def run_scan(folder: Path, index: int) -> int:
    """Register one scan, as a task of a job array; return the exit status.

    Parameters
    ----------
    folder : Path
        Folder of the run, with the inputs of its scans.
    index : int
        Number of the scan.

    Raises
    ------
    InputError
        If the code has changed since the job was submitted. Its results would be stored under the name of the old code.
    """
    given = pickle.loads((folder / INPUTS).read_bytes())
    if given["code"] != code_version():
        raise InputError(
            "The code of nio_pydra, or the version of ANTs or deepbet, was changed between the submission of this job "
            "and its start: run the same command again."
        )
    name, inputs = list(given["scans"].items())[index]
    log.info("%s on %s", name, os.uname().nodename)
    work_dir = folder.parents[2]  # folder is <work>/slurm/<run>/<part>
    cache = use_work_folder(work_dir)
    key = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    (folder / f"{key}.holder").write_text(json.dumps(own_holder(folder)))
    with in_use(work_dir, discard_locks=False), Submitter(worker=SerialWorker, cache_root=cache) as submit:
        task = Subject(**inputs)
        failed = submit(task, raise_errors=False).errored
    if failed:
        log.error("%s: %s", name, failure_reason(cache, task)[0])
    return int(failed)


def _script(folder: Path, resources: Resources, options: str) -> str:
    """Return the batch script. Its directives yield to SBATCH_* variables and to options of sbatch."""
    # sbatch does not let options replace directives of another name for the same thing.
    own_memory = "--mem-per-" in options or any(name.startswith("SBATCH_MEM_PER_") for name in os.environ)
    own_gpus = re.search(r"(^|\s)(--gpus|-G)", options) is not None
    directives = [
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={resources.cpus}",
        *([] if own_memory else [f"--mem={resources.memory_mb}M"]),
        f"--time={resources.minutes}",
        "--no-requeue",
        *(["--gres=gpu:1"] if resources.gpus and not own_gpus else []),
    ]
    path = os.environ.get("PYTHONPATH")
    return "\n".join([
        "#!/bin/sh",
        *(f"#SBATCH {directive}" for directive in directives),
        # Without this a library would count the cores of the whole node.
        f"export OMP_NUM_THREADS={resources.threads or f'${{SLURM_CPUS_PER_TASK:-{resources.cpus}}}'}",
        *([f"export PYTHONPATH={shlex.quote(path)}"] if path else []),
        f'exec {shlex.quote(sys.executable)} -P -m nio_pydra.cli.slurm_task {shlex.quote(str(folder))} '
        '"$SLURM_ARRAY_TASK_ID"',
        "",
    ])  # fmt: skip


def _pattern(folder: Path) -> str:
    """Return a path as a pattern of SLURM that stands for this path alone."""
    return str(folder).replace("%", "%%")
