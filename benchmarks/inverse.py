"""Measure how well transforms that `nio-pydra` wrote undo each other, and write `docs/results/inverse.md`.

    python benchmarks/inverse.py OUT [OUT ...]

Every OUT is an output folder of `nio-pydra` for skull-stripped scans, as what is not zero is taken for brain. The files
are read as any user of them would, affines and all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_image
from nio_pydra.spatial.itk import read_h5
from nio_pydra.spatial.transforms import Transform, apply_affine
from nio_pydra.system.files import atomic_path

POINTS = 100_000
DIGITS = 16  # of a digest in the table
#: What is measured of a scan, in mm.
WAYS = (
    "atlas, scan, atlas; voxels of the atlas",
    "atlas, scan, atlas; between them",
    "scan, atlas, scan; voxels of the scan",
)


def main() -> None:
    """Measure all runs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="OUT", help="output folder of nio-pydra")
    parser.add_argument("--table", type=Path, default=Path(__file__).parents[1] / "docs/results/inverse.md")
    options = parser.parse_args()
    paths: list[Path] = []
    for out in options.runs:
        records = sorted(out.rglob("*_record.json"))
        if not records:
            parser.error(f"{out} holds no *_record.json: expected an output folder of nio-pydra")
        paths += records
    found: dict[str, list[NDArray[np.float64]]] = {}
    for path in paths:
        record = json.loads(path.read_text())
        weights = record.get("weights") or {"sha256": "-"}
        name = f"{record['engine']} {record['preset']} | {weights['sha256'][:DIGITS]}"
        try:
            found.setdefault(name, []).append(_errors(path))
        except InputError as error:
            parser.error(str(error))
        print(path.name, name, found[name][-1].round(3).tolist(), flush=True)
    lines = [
        "# There and back",
        "",
        "Written by `benchmarks/inverse.py`: distance in mm between points of a brain and where the transforms of a "
        f"run, one after the other, bring them, at {POINTS:,} points of a scan. Shown are median / 99th percentile, "
        f"the highest of the scans. Weights by the first {DIGITS} digits of their SHA-256.",
        "",
        "| method | weights | scans | " + " | ".join(WAYS) + " |",
        "|---" * (3 + len(WAYS)) + "|",
    ]
    for name, errors in sorted(found.items()):
        worst = np.max(errors, axis=0)
        lines.append(f"| {name} | {len(errors)} | " + " | ".join(f"{m:.3f} / {p:.2f}" for m, p in worst) + " |")
    with atomic_path(options.table) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    print(f"written: {options.table}")


def _errors(record: Path) -> NDArray[np.float64]:
    """Median and 99th percentile of `WAYS`, ``(3, 2)``."""
    start, _, rest = record.name.partition("_space-")
    atlas = rest.partition("_")[0]
    forward, inverse = (
        read_h5(record.with_name(f"{start}_from-{source}_to-{target}_mode-image_xfm.h5"))
        for source, target in (("T1w", atlas), (atlas, "T1w"))
    )
    rng = np.random.default_rng(0)
    on_atlas, affine = _voxels(record.with_name(record.name.replace("_record.json", "_T1w.nii.gz")), rng)
    on_scan, affine_of_scan = _voxels(record.with_name(f"{start}_desc-nio_mask.nii.gz"), rng)
    between = on_atlas + rng.uniform(-0.5, 0.5, on_atlas.shape)
    trips = (
        (forward, inverse, apply_affine(affine, on_atlas)),
        (forward, inverse, apply_affine(affine, between)),
        (inverse, forward, apply_affine(affine_of_scan, on_scan)),
    )
    return np.array([_quantiles(*trip) for trip in trips])


def _voxels(image: Path, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Some voxels of a brain, and the affine of their grid."""
    brain = load_image(image)
    voxels = np.argwhere(np.asanyarray(brain.dataobj) > 0)
    return voxels[rng.choice(len(voxels), POINTS)].astype(np.float64), brain.affine


def _quantiles(there: Transform, back: Transform, points: NDArray[np.float64]) -> tuple[float, float]:
    errors = np.linalg.norm(back.map_points(there.map_points(points)) - points, axis=1)
    return float(np.median(errors)), float(np.percentile(errors, 99))


if __name__ == "__main__":
    main()
