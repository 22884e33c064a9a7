"""Work folder of a run: opened, or cleaned."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nio_pydra.errors import InputError
from nio_pydra.workflows.cache import discard_unfinished, in_use, own_folder
from nio_pydra.workflows.pydra_private import use_work_folder, warn_if_untried
from nio_pydra.workflows.slurm import FOLDER, live_jobs

__all__ = ["clean_work_folder", "opened"]


@contextmanager
def opened(work_dir: Path) -> Iterator[Path]:
    """Use a work folder, after what a killed run left there is deleted.

    Yields
    ------
    Path
        pydra's cache folder in it.
    """
    work_dir = own_folder(work_dir)
    warn_if_untried()
    cache = use_work_folder(work_dir)
    jobs_live = live_jobs(work_dir)  # of a run that was killed, or beside this one
    with in_use(work_dir, discard_locks=not jobs_live) as alone:
        discard_unfinished(cache, alone=alone and not jobs_live)
        yield cache


def clean_work_folder(work_dir: Path) -> None:
    """Delete what earlier runs left in a work folder.

    Raises
    ------
    InputError
        If another run or one of its SLURM jobs uses the folder.
    """
    folder = own_folder(work_dir)
    with in_use(folder, discard_locks=False, stay_alone=True) as alone:
        if not alone or live_jobs(folder):
            raise InputError(
                f"--clean-workdir cannot delete {folder}, because another run uses it: wait for that run, or give "
                "another -w."
            )
        for name in ("pydra", "hashes", "adapted", FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
