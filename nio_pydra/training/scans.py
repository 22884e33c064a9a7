"""Real scans, brought to one space once, for training."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Image

from nio_pydra.engines.affine import align
from nio_pydra.engines.contract import Runtime, ScanFiles, foreground_only
from nio_pydra.engines.masks import make_mask
from nio_pydra.errors import FullDiskError, InputError, ProgramError
from nio_pydra.spatial.conform import NetworkGrid, network_grid, scale_intensities
from nio_pydra.spatial.images import load_image, load_labels, load_mask
from nio_pydra.spatial.itk import read_affine
from nio_pydra.spatial.transforms import Transform, resample
from nio_pydra.system.files import atomic_path, contents_digest
from nio_pydra.system.scratch import scratch_folder
from nio_pydra.training.maps import GRID, ORIENTATION

__all__ = ["prepare_scans", "read_scan_list"]

COLUMNS = ("image", "mask", "labels")


def read_scan_list(path: Path, *, skull_stripped: bool = False) -> list[ScanFiles]:
    """Read a table of scans: tab-separated, with a column ``image`` and, if wanted, ``mask`` and ``labels``.

    Paths are relative to the table's folder; an empty cell or ``n/a`` means none.

    Raises
    ------
    InputError
        If the table cannot be read or has other columns.
    """
    try:
        with path.open(newline="") as file:
            table = csv.DictReader(file, delimiter="\t")
            rows = list(table)
            header = tuple(table.fieldnames or ())
    except OSError as error:
        raise InputError(f"{path}: the table of scans cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no table ({error}): expected text with tabs between its columns.") from None
    if "image" not in header or not set(header) <= set(COLUMNS):
        raise InputError(f"{path} has the columns {header}: expected image, and perhaps mask and labels, between tabs.")

    def file_of(row: dict[str, str | None], column: str) -> Path | None:
        cell = (row.get(column) or "").strip()
        return None if cell in ("", "n/a") else path.parent / cell

    scans = []
    for number, row in enumerate(rows, start=2):
        image = file_of(row, "image")
        if image is None:
            raise InputError(f"{path}, line {number}: names no image.")
        scans.append(ScanFiles(image, file_of(row, "mask"), file_of(row, "labels"), skull_stripped=skull_stripped))
    return scans


def prepare_scans(
    scans: list[ScanFiles], cache: Path, runtime: Runtime, log: Callable[[str], None] = print
) -> list[Path]:
    """Extract the brains, align them to the first one by an affine, and store them on `GRID`; done once.

    A scan that cannot be used is named and left out; the others go on.

    Parameters
    ----------
    scans : list of ScanFiles
        The first one becomes the common space.
    cache : Path
        Takes one ``.npz`` for each scan: ``image`` (144, 160, 192) float16 in [0, 1], LIA, 1 mm, and ``labels`` int32
        where the scan has some.
    runtime : Runtime
        Device, threads and seed of brain extraction and affine.
    log : callable
        Takes one line at a time.

    Returns
    -------
    list of Path
        Of the scans that could be used, in order.

    Raises
    ------
    InputError
        If the first scan cannot be used, or the disk is full.
    """
    if not scans:
        raise InputError("There are no scans to train on.")
    first, done = _digest(scans[0]), []
    cache.mkdir(parents=True, exist_ok=True)
    with scratch_folder(cache) as folder:
        runtime = replace(runtime, scratch=folder)
        space = None
        for number, scan in enumerate(scans, start=1):
            try:
                # Named by what went into it: another list in the same place must not meet the old files.
                target = cache / f"{number:05d}-{first}-{_digest(scan)}.npz"
                if not target.is_file():
                    space = space or _Space(scans[0], folder, runtime)
                    space.store(scan, target)
                    log(f"prepared {number}/{len(scans)}: {scan.image}")
            except (InputError, ProgramError) as error:
                if number == 1 or isinstance(error, FullDiskError):
                    raise
                log(f"left out {number}/{len(scans)}: {error}")
                continue
            done.append(target)
    return done


def _digest(scan: ScanFiles) -> str:
    shows = "brain" if scan.skull_stripped else "head"
    return contents_digest(scan.image, scan.mask, scan.labels) + shows


class _Space:
    """The grid around the first scan's brain, and the way of other scans onto it."""

    def __init__(self, scan: ScanFiles, folder: Path, runtime: Runtime) -> None:
        self.first, self.folder, self.runtime = scan, folder, runtime
        brain = self._brain(scan, "first")
        tight = network_grid(brain, np.asanyarray(brain.dataobj) != 0, orientation=ORIENTATION, voxel_size_mm=1.0)
        # Of the training's size, about the same middle.
        affine = tight.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ ((np.array(tight.shape) - np.array(GRID)) // 2)
        self.grid = NetworkGrid(GRID, affine)

    def store(self, scan: ScanFiles, target: Path) -> None:
        """Bring a scan onto the grid and store it."""
        brain = self._brain(scan, "scan")
        to_scan = np.eye(4) if scan == self.first else self._affine(scan)
        volume = self.grid.sample(brain, to_scan)
        if not volume.any():
            raise InputError(
                f"{scan.image}: after the affine alignment no part of its brain lies on {self.first.image}."
            )
        arrays: dict[str, Any] = {"image": scale_intensities(volume, "percentile")[0, 0].numpy().astype(np.float16)}
        if scan.labels is not None:
            labels = load_labels(scan.labels, like=brain)
            reference = Nifti1Image(np.broadcast_to(np.uint8(0), GRID), self.grid.affine)
            moved = resample(labels, reference, Transform((to_scan,)), "nearest")
            arrays["labels"] = np.asanyarray(moved.dataobj).astype(np.int32)
        with atomic_path(target) as temporary:
            np.savez_compressed(temporary, **arrays)

    def _brain(self, scan: ScanFiles, name: str) -> nib.nifti1.Nifti1Image:
        """The scan, zero outside its brain; its mask is left in the folder."""
        image = load_image(scan.image, "T1w")
        mask = self.folder / f"{name}_mask.nii.gz"
        if scan.mask is None:
            make_mask(scan.image, mask, self.runtime, skull_stripped=scan.skull_stripped)
        else:
            nib.save(load_mask(scan.mask, like=image), mask)
        return foreground_only(image, load_mask(mask, like=image))

    def _affine(self, scan: ScanFiles) -> np.ndarray:
        out = self.folder / "affine.h5"
        first = replace(self.first, mask=self.folder / "first_mask.nii.gz")
        align(first, replace(scan, mask=self.folder / "scan_mask.nii.gz"), out, self.runtime)
        return read_affine(out)
