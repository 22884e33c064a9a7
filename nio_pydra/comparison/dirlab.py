"""The DIR-Lab 4DCT data: its files read, its ten cases registered, and the table of the NIO paper made from them.

The images need a password from their owners (dir-lab.com), so they are not part of this package. In each case the
expiration (phase T50, moving) is registered to the inspiration (T00, fixed), as in the paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.errors import InputError
from nio_pydra.metrics.landmarks import CLOSE_MM

__all__ = ["CASES", "PAPER", "CaseFiles", "Geometry", "cases_table", "find_case", "read_phase", "summary"]

PHASES = ("T00", "T50")
"""End of inspiration (fixed) and of expiration (moving)."""
OFFSET = 1024
"""What DIR-Lab's files hold above Hounsfield units."""
RANGES = ((-1100, -300), (-150, 300))
"""Hounsfield units of lung and air, and of tissue."""
LEAST = 0.05
"""Share of voxels that each of them has in any scan of a chest."""


@dataclass(frozen=True)
class Geometry:
    """Grid of the images of one case.

    Attributes
    ----------
    shape : tuple of int
        Voxels along x (to the left), y (to the back) and z (to the feet).
    spacing : tuple of float
        Voxel size in mm.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


CASES: Mapping[int, Geometry] = {
    1: Geometry((256, 256, 94), (0.97, 0.97, 2.5)),
    2: Geometry((256, 256, 112), (1.16, 1.16, 2.5)),
    3: Geometry((256, 256, 104), (1.15, 1.15, 2.5)),
    4: Geometry((256, 256, 99), (1.13, 1.13, 2.5)),
    5: Geometry((256, 256, 106), (1.10, 1.10, 2.5)),
    6: Geometry((512, 512, 128), (0.97, 0.97, 2.5)),
    7: Geometry((512, 512, 136), (0.97, 0.97, 2.5)),
    8: Geometry((512, 512, 128), (0.97, 0.97, 2.5)),
    9: Geometry((512, 512, 128), (0.97, 0.97, 2.5)),
    10: Geometry((512, 512, 120), (0.97, 0.97, 2.5)),
}
"""As DIR-Lab publishes them. With these spacings the distances of the landmarks before registration are the published
ones, to the last digit."""

PAPER: Mapping[str, Sequence[tuple[float, float]]] = {
    "Initial": (
        (3.89, 2.78), (4.34, 3.90), (6.94, 4.05), (9.83, 4.85), (7.48, 5.50),
        (10.89, 6.96), (11.03, 7.42), (14.99, 9.00), (7.92, 3.97), (7.30, 6.34), (8.46, 6.58),
    ),
    "LapIRN": (
        (1.05, 0.47), (1.04, 0.52), (1.18, 0.62), (1.40, 0.99), (1.41, 1.21),
        (1.36, 0.77), (1.31, 0.68), (1.73, 2.31), (1.34, 0.73), (1.25, 0.77), (1.31, 0.19),
    ),
    "IO": (
        (1.00, 0.46), (0.97, 0.47), (1.11, 0.61), (1.35, 0.98), (1.34, 1.20),
        (1.20, 0.67), (1.20, 0.64), (1.59, 2.20), (1.20, 0.69), (1.14, 0.74), (1.21, 0.87),
    ),
    "NIO_m": (
        (0.99, 0.46), (0.97, 0.47), (1.10, 0.61), (1.33, 0.95), (1.34, 1.21),
        (1.16, 0.66), (1.16, 0.62), (1.19, 0.96), (1.16, 0.65), (1.08, 0.58), (1.15, 0.71),
    ),
}  # fmt: skip
"""Table 2 of Mok et al. 2023: mean and standard deviation of the error in mm, for cases 1 to 10 and in its last row."""
PAPER_COLUMNS = {"lapirn": "LapIRN", "io": "IO", "nio_m": "NIO_m"}
INITIAL = "Initial"
"""Name of the row of a case without any registration."""


@dataclass(frozen=True)
class CaseFiles:
    """Files of one case, of the inspiration and of the expiration.

    Attributes
    ----------
    images, landmarks : tuple of Path
    """

    images: tuple[Path, Path]
    landmarks: tuple[Path, Path]


def find_case(folder: Path, number: int) -> CaseFiles | None:
    """Find the files of one case, wherever they lie in a folder.

    Parameters
    ----------
    folder : Path
        Folder with the unpacked data (``Case1Pack``, ...).
    number : int
        1 to 10.

    Returns
    -------
    CaseFiles or None
        None if there is no image of that case.

    Raises
    ------
    InputError
        If a phase or the landmarks of one are missing, or there are several.
    """
    name = re.compile(rf"case[_ ]?0*{number}(?!\d)", re.IGNORECASE)
    own = sorted(path for path in folder.rglob("*") if name.match(path.name) and path.is_file())
    images = [path for path in own if path.suffix.lower() == ".img"]
    if not images:
        return None
    points = [path for path in own if path.suffix.lower() == ".txt" and "300" in path.name]
    chosen = [_one(files, phase, f"{what} of case {number}", folder)
              for files, what in ((images, "image (.img)"), (points, "300 landmarks (.txt)"))
              for phase in PHASES]  # fmt: skip
    return CaseFiles((chosen[0], chosen[1]), (chosen[2], chosen[3]))


def _one(files: Sequence[Path], phase: str, what: str, folder: Path) -> Path:
    found = [path for path in files if re.search(rf"{phase}(?!\d)", path.name, re.IGNORECASE)]
    if len(found) == 1:
        return found[0]
    others = f" Found: {', '.join(str(path) for path in found)}." if found else ""
    raise InputError(
        f"{folder} has {len(found) or 'no'} {what} at phase {phase}: expected one for each of {' and '.join(PHASES)} "
        f"(the ends of inspiration and expiration).{others} Unpack the whole archive of the case."
    )


def read_phase(path: Path, geometry: Geometry) -> Nifti1Image:
    """Read one raw image of DIR-Lab.

    Parameters
    ----------
    path : Path
        int16 voxels without a header, little endian, x fastest.
    geometry : Geometry
        Grid of the case.

    Returns
    -------
    Nifti1Image
        ``(X, Y, Z)`` int16, Hounsfield units. The axes run to the left, the back and the feet; that z runs to the feet
        shows in the landmarks, which move up the further the larger their z is.

    Raises
    ------
    InputError
        If the file is not of the size of that case, or its values are neither Hounsfield units nor those plus 1024.
    """
    size, expected = path.stat().st_size, int(np.prod(geometry.shape)) * 2
    if size != expected:
        grid = " x ".join(str(n) for n in geometry.shape)
        raise InputError(
            f"{path} has {size} bytes: expected {expected}, int16 voxels on the grid {grid} of its case. "
            "Is it unpacked completely, and of the case that its name says?"
        )
    voxels: NDArray[np.int16] = np.fromfile(path, "<i2").reshape(geometry.shape, order="F").astype(np.int16)
    if not _like_chest(voxels, 0):
        if not _like_chest(voxels, OFFSET):
            raise InputError(
                f"{path} has values from {voxels.min()} to {voxels.max()}, with hardly any lung or tissue if they are "
                "Hounsfield units, or those plus 1024 as DIR-Lab has them. Is it the original file?"
            )
        voxels = (voxels.astype(np.int32) - OFFSET).clip(-OFFSET, None).astype(np.int16)
    affine = np.diag([*(-np.array(geometry.spacing)), 1.0])
    image = Nifti1Image(voxels, affine)
    image.file_map["image"].filename = str(path)  # for messages
    return image


def _like_chest(voxels: NDArray[np.int16], offset: int) -> bool:
    """Return whether there is air and tissue among values that are Hounsfield units plus an offset."""
    shares = [((voxels > low + offset) & (voxels < high + offset)).mean() for low, high in RANGES]
    return min(shares) >= LEAST


def cases_table(records: Mapping[tuple[int, str], Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row for each case and method.

    Parameters
    ----------
    records : mapping
        By case and method: a record with ``landmarks`` as
        :meth:`nio_pydra.metrics.TargetRegistrationError.as_record` returns them, and what else it holds. The method
        `INITIAL` stands for no registration.
    """
    rows = []
    for (case, method), record in records.items():
        found = record["landmarks"]
        row = {"case": case, "method": method, "landmarks": found["count"]}
        for prefix, numbers in (("", found), ("snapped_", found["snapped"])):
            row |= {f"{prefix}{name}": value for name, value in numbers.items()
                    if isinstance(value, float)}  # fmt: skip
        row |= {name: record.get(name) for name in ("std_jacobian", "fold_percent", "peak_memory_mb", "device")}
        row["seconds"] = record.get("seconds", {}).get("registration")
        rows.append(row)
    return pd.DataFrame(rows)


def summary(records: Mapping[tuple[int, str], Mapping[str, Any]], failures: Mapping[tuple[int, str], str]) -> str:
    """Return Table 2 of the paper with these results, in Markdown.

    Parameters
    ----------
    records : mapping
        As for :func:`cases_table`.
    failures : mapping
        By case and method: why there is no record.
    """
    cases = sorted({case for case, _ in [*records, *failures]})
    methods = list(dict.fromkeys(method for _, method in [*records, *failures]))
    columns: list[tuple[str, str, Sequence[tuple[float, float]] | None]] = []
    for method in methods:
        columns.append((method, method, None))
        known = INITIAL if method == INITIAL else PAPER_COLUMNS.get(method.partition(":")[0])
        if known is not None:
            columns.append((method, f"{known} (paper)", PAPER[known]))
    lines = ["# DIR-Lab 4DCT: target registration error", ""]
    lines += ["Millimetres, mean ± standard deviation over the landmarks of a case. Columns marked (paper) are numbers",
              "of Table 2 of Mok et al. 2023, not computed here.", ""]  # fmt: skip
    lines += ["| Case | " + " | ".join(title.replace("_", "\\_") for _, title, _ in columns) + " |"]
    lines += ["| --- " * (len(columns) + 1) + "|"]

    def errors(method: str, of: Sequence[int]) -> list[NDArray[np.float64]]:
        return [np.array(records[case, method]["landmarks"]["errors"]) for case in of if (case, method) in records]

    for case in cases:
        cells = []
        for method, _, paper in columns:
            if paper is not None:
                cells.append("{:.2f} ± {:.2f}".format(*paper[case - 1]))
            elif (case, method) in records:
                found = records[case, method]["landmarks"]
                cells.append(f"{found['mean']:.2f} ± {found['sd']:.2f}")
            else:
                cells.append("–")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    # Those of all methods, so that means are over the same cases.
    common = [case for case in cases if all((case, method) in records for method in methods if errors(method, cases))]
    rows = {
        f"Mean of {len(common)} cases": lambda all_: f"{np.mean([e.mean() for e in all_]):.2f}",
        "SD over all landmarks": lambda all_: f"{np.concatenate(all_).std():.2f}",
        "SD over cases": lambda all_: f"{np.std([e.mean() for e in all_]):.2f}",
        "Mean of the cases' SD": lambda all_: f"{np.mean([e.std() for e in all_]):.2f}",
        "Below 1.2 mm": lambda all_: f"{(np.concatenate(all_) < CLOSE_MM).mean():.0%}",
    }
    for title, function in rows.items():
        cells = []
        for method, _, paper in columns:
            own = errors(method, common)
            if paper is None:
                cells.append(function(own) if own else "–")
            else:
                cells.append(_of_paper(title, paper, common) if common else "–")
        lines.append(f"| **{title}** | " + " | ".join(cells) + " |")
    lines += ["", PAPER_NOTE]
    lines += [f"- Case {case}, {method}: {reason}" for (case, method), reason in failures.items()]
    return "\n".join(lines).rstrip() + "\n"


PAPER_NOTE = """\
The paper writes one "mean ± standard deviation" in the last row of its table, for all ten cases: Initial 8.46 ± 6.58,
LapIRN 1.31 ± 0.19, IO 1.21 ± 0.87, NIO_m 1.15 ± 0.71. They are of three kinds: 6.58 is over all landmarks, 0.19 is over
the means of the cases, 0.87 and 0.71 are means of the cases' standard deviations. So each is a row of its own here;
those of the paper's columns are computed from its numbers of the cases. All are over the cases that every method has
done. The paper has 55 % of the landmarks below 1.2 mm with LapIRN, and 64 % with NIO_m.
"""


def _of_paper(title: str, paper: Sequence[tuple[float, float]], cases: Iterable[int]) -> str:
    """Return one number of a last row, from the paper's numbers of the cases."""
    means, deviations = np.array([paper[case - 1] for case in cases]).T
    if title.startswith("Mean of the"):
        return f"{deviations.mean():.2f}"
    if title.startswith("Mean of"):
        return f"{means.mean():.2f}"
    if title == "SD over cases":
        return f"{means.std():.2f}"
    if title == "SD over all landmarks":
        return f"{np.sqrt((deviations**2 + (means - means.mean()) ** 2).mean()):.2f}"
    return "–"
