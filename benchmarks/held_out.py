"""Register images of label maps that no training saw with several networks, and write `docs/results/held_out.md`.

    python benchmarks/held_out.py LABELS --out RUNS --weights "28 channels=a.safetensors" --weights "16=b.safetensors"

Which network becomes the default is decided by this table alone, so that the real scans stay unseen. The pairs are
those by which `nio train` validates level 3. Runs that are there already are kept: a killed benchmark goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
from app_runs import METHODS, digest_of, named_file, slug
from nibabel.nifti1 import Nifti1Image

from nio_pydra.engines.contract import Pair, Runtime
from nio_pydra.engines.methods import choose_method
from nio_pydra.metrics import dice
from nio_pydra.networks.checkpoints import load_network
from nio_pydra.optimize.resources import limit_threads
from nio_pydra.spatial.transforms import Transform, resample
from nio_pydra.system.files import atomic_path
from nio_pydra.training.maps import prepare_label_maps
from nio_pydra.training.pairs import ImagePair, SyntheticImages
from nio_pydra.training.settings import TrainingSettings

LIA = np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # of the prepared maps, 1 mm
COLUMNS = {"Dice": 4, "folds before unfolding %": 2, "processor seconds": 0}  # to the number of digits


def main() -> int:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path, help="folder of the label maps, as for nio train")
    parser.add_argument("--weights", action="append", type=named_file, required=True, metavar="NAME=FILE")
    parser.add_argument("--out", type=Path, required=True, help="takes the runs")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=Path, default=Path(__file__).parents[1] / "docs/results/held_out.md")
    options = parser.parse_args()
    networks = dict(options.weights)
    limit_threads(options.threads)
    settings = TrainingSettings()
    source = SyntheticImages(
        prepare_label_maps(options.labels, options.out / "maps"), settings.synthesis, settings.held_out
    )
    pairs = source.validation(1)
    # What else decides a result, so that runs of other data or settings are not taken for these.
    same = repr(([file.name for file in source.held_out], settings.synthesis, options.threads))
    runs = options.out / hashlib.sha256(same.encode()).hexdigest()[:12]
    for method in options.methods:
        for name, weights in networks.items():
            for number, pair in enumerate(pairs):
                target = _target(runs, method, weights, number)
                if not target.is_file():
                    result = _run(pair, method, weights, options.threads)
                    with atomic_path(target) as temporary:
                        temporary.write_text(json.dumps(result, indent=1) + "\n")
                    print(f"{time.strftime('%H:%M:%S')} {method}, {name}, pair {number}: {result}", flush=True)
    _write(options, runs, networks, len(pairs))
    return 0


def _target(runs: Path, method: str, weights: Path, number: int) -> Path:
    return runs / f"{slug(method)}_{digest_of(weights)}_{number}.json"


def _run(pair: ImagePair, method: str, weights: Path, threads: int) -> dict[str, float]:
    """Register a pair by the engine that users get, from where it lies."""
    images = [Nifti1Image(image[0, 0].numpy(), LIA) for image in (pair.fixed, pair.moving)]
    masks = [Nifti1Image((np.asanyarray(image.dataobj) > 0).astype(np.uint8), LIA) for image in images]
    assert pair.fixed_labels is not None and pair.moving_labels is not None
    fixed, moving = (
        Nifti1Image(labels[0, 0].numpy().astype(np.int16), LIA) for labels in (pair.fixed_labels, pair.moving_labels)
    )
    chosen = choose_method(*METHODS[method], weights=weights)
    begin = time.process_time()
    found = chosen.engine.run(
        Pair(*images, np.eye(4), *masks),
        chosen.settings,
        Runtime(device="cpu", threads=threads, progress=False),
    )
    seconds = time.process_time() - begin
    moved = resample(moving, fixed, Transform((found.forward,)), "nearest")
    overlap = dice(np.asanyarray(fixed.dataobj), np.asanyarray(moved.dataobj))
    folds = found.details["before_unfolding"]["fold_percent"]
    return dict(zip(COLUMNS, (float(np.mean(list(overlap.values()))), folds, seconds), strict=True))


def _write(options: argparse.Namespace, runs: Path, networks: dict[str, Path], pairs: int) -> None:
    lines = [
        "# Networks on label maps held out",
        "",
        f"Written by `benchmarks/held_out.py`. {pairs} pairs of images of the label maps that training leaves for "
        "validation, shown as T1-weighted scans, registered from where they lie. Dice is the mean over the structures "
        "that training compares by. Processor seconds add up all threads and leave out the reading.",
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, {options.threads} threads per run.",
        "",
        "| weights | parameters | SHA-256 |",
        "|---|---|---|",
    ]
    for name, weights in networks.items():
        parameters = sum(p.numel() for p in load_network(weights)[0].parameters())
        lines.append(f"| {name} | {parameters:,} | {digest_of(weights)} |")
    lines += ["", "| method, weights | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for method in METHODS:
        for name, weights in networks.items():
            files = [_target(runs, method, weights, number) for number in range(pairs)]
            done = [json.loads(file.read_text()) for file in files if file.is_file()]
            if len(done) < pairs:
                lines.append(f"| {method}, {name} | {len(done)} of {pairs} run |" + " |" * (len(COLUMNS) - 1))
                continue
            means = (f"{np.mean([run[column] for run in done]):.{digits}f}" for column, digits in COLUMNS.items())
            lines.append(f"| {method}, {name} | " + " | ".join(means) + " |")
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text("\n".join(lines) + "\n")
    print(f"written: {options.table}")


if __name__ == "__main__":
    raise SystemExit(main())
