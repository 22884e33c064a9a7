"""Register pairs that are aligned by an affine already on a GPU, and write `docs/results/gpu.md`.

    python benchmarks/gpu.py run PAIRS RESULTS.json [--methods METHOD ...]
    python benchmarks/gpu.py table RESULTS.json

PAIRS holds ``fixed.nii.gz`` and ``fixed_dseg.nii.gz``, and for each scan ``NAME.nii.gz``, ``NAME_dseg.nii.gz`` and
``NAME_affine.h5`` (fixed to moving points; work/nio_pydra of `nio compare` holds those of its scans). All are
skull-stripped. Each method registers the first pair once before its times are taken, as a GPU's first run is slow. What
is timed is what `seconds.registration` of a record is: from images in memory to both transforms in memory. Weights that
a METHOD names are looked up in the current folder.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy.ndimage import binary_fill_holes

from nio_pydra import __version__
from nio_pydra.engines.contract import Pair, Runtime
from nio_pydra.engines.methods import Method, parse_method
from nio_pydra.engines.stopwatch import Stopwatch
from nio_pydra.metrics import dice, mean_of_lowest, regularity
from nio_pydra.spatial.images import load_image, load_labels
from nio_pydra.spatial.inversion import invert
from nio_pydra.spatial.itk import read_affine
from nio_pydra.spatial.transforms import Transform, resample
from nio_pydra.system.files import atomic_path

METHODS = ["lapirn", "io", "nio", "nio_m:paper", "nio_m:precise", "nio_m:fast"]
RUNTIME = Runtime(device="cuda", progress=False)


def main() -> int:
    """Run, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("pairs", type=Path)
    run.add_argument("results", type=Path)
    run.add_argument("--methods", nargs="+", default=METHODS)
    table = commands.add_parser("table")
    table.add_argument("results", type=Path)
    table.add_argument("--table", type=Path, default=Path(__file__).parents[1] / "docs/results/gpu.md")
    options = parser.parse_args()
    if options.command == "run":
        _run(options.pairs, options.results, options.methods)
    else:
        _write(json.loads(options.results.read_text()), options.table)
    return 0


def _run(folder: Path, results: Path, methods: list[str]) -> None:
    import torch

    names = sorted(path.name.removesuffix("_affine.h5") for path in folder.glob("*_affine.h5"))
    fixed = load_image(folder / "fixed.nii.gz")
    truth = load_labels(folder / "fixed_dseg.nii.gz", like=fixed)
    pairs = {name: _pair(folder, name, fixed) for name in names}
    labels = {name: load_labels(folder / f"{name}_dseg.nii.gz", like=pair.moving) for name, pair in pairs.items()}
    machine = f"{torch.cuda.get_device_name()}, {platform.processor() or platform.machine()}, torch {torch.__version__}"
    cases: list[dict[str, Any]] = []
    for text in methods:
        method = parse_method(text)
        _register(method, pairs[names[0]], truth, labels[names[0]])
        for name, pair in pairs.items():
            cases.append({"method": text, "case": name, **_register(method, pair, truth, labels[name])})
            print(text, name, {key: value for key, value in cases[-1].items() if key != "dice"}, flush=True)
            with atomic_path(results) as temporary:
                record = {"machine": machine, "version": __version__, "cases": cases}
                temporary.write_text(json.dumps(record, indent=1) + "\n")


def _pair(folder: Path, name: str, fixed: Nifti1Image) -> Pair:
    moving = load_image(folder / f"{name}.nii.gz")
    masks = [
        Nifti1Image(binary_fill_holes(np.asanyarray(image.dataobj) != 0).astype(np.uint8), image.affine)
        for image in (fixed, moving)
    ]
    return Pair(fixed, moving, read_affine(folder / f"{name}_affine.h5"), *masks)


def _register(method: Method, pair: Pair, truth: Nifti1Image, labels: Nifti1Image) -> dict[str, Any]:
    import torch

    torch.cuda.reset_peak_memory_stats()
    found = method.engine.run(pair, method.settings, RUNTIME)
    assert found.forward is not None
    watch = Stopwatch()
    invert(found.forward)
    spent = found.spent + watch.read()
    moved = resample(labels, pair.fixed, Transform((found.forward, pair.affine)), "nearest")
    before = {int(label) for label in np.unique(np.asanyarray(labels.dataobj))}
    overlap = dice(np.asanyarray(truth.dataobj), np.asanyarray(moved.dataobj), before)
    return {
        "dice": {str(label): value for label, value in overlap.items()},
        "dice_mean": float(np.mean(list(overlap.values()))),
        "std_jacobian": asdict(regularity(found.forward, pair.fixed_foreground))["std_jacobian"],
        "fold_percent_raw": found.details["before_unfolding"]["fold_percent"],
        "seconds": spent.wall,
        "network_seconds": found.spent.wall,
        "device_memory_mb": found.details["peak_device_memory_mb"],
        "precision": found.details["precision"],
    }


def _write(results: dict[str, Any], path: Path) -> None:
    cases = results["cases"]
    count = len({case["case"] for case in cases})
    lines = [
        "# On a GPU",
        "",
        f"Written by `benchmarks/gpu.py`, nio_pydra {results['version']}, on {results['machine']}. {count} scans, one "
        "affine for all methods. Times are those from images in memory to both transforms in memory; the field is "
        "brought back, freed of folds and inverted on the processor. Seconds are medians over the scans, all else is "
        "means. Each method ran once before its times were taken. "
        "DSC30 is the mean of the lowest 30 % of the cases' Dice. Folds are those of the field that the method found, "
        "before they are removed. Atlas: sub-1000 of oasis_malf; scans: "
        f"{', '.join(sorted({case['case'] for case in cases}))}.",
        "",
        "| method | Dice | DSC30 | std of Jacobian | folds % | seconds | of which inversion | GPU memory, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(case["method"] for case in cases):
        own = [case for case in cases if case["method"] == method]
        mean = {key: float(np.mean([case[key] for case in own])) for key in own[0] if isinstance(own[0][key], float)}
        overlap = [case["dice_mean"] for case in own]
        seconds = float(np.median([case["seconds"] for case in own]))
        inversion = float(np.median([case["seconds"] - case["network_seconds"] for case in own]))
        lines.append(
            f"| {method} | {mean['dice_mean']:.3f} ± {np.std(overlap, ddof=1):.3f} | {mean_of_lowest(overlap):.3f} "
            f"| {mean['std_jacobian']:.3f} | {mean['fold_percent_raw']:.2f} | {seconds:.1f} "
            f"| {inversion:.1f} | {mean['device_memory_mb']:.0f} |"
        )
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
