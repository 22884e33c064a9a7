"""One run of `speed.py` in a process of its own, so that peak memory, threads and caches are its own.

    python benchmarks/speed_run.py REQUEST.json RESULT.json

The request names a task of `TASKS` and its inputs; the result is what the table needs.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.engines.methods import Method, choose_method
from nio_pydra.errors import InputError, ProgramError
from nio_pydra.spatial.itk import write_h5
from nio_pydra.spatial.transforms import Transform
from nio_pydra.system.files import atomic_path

PACKAGES = ("nio-pydra", "torch", "numba", "numpy", "nibabel", "antspyx", "picsl-greedy")
MEMORY_ITERATIONS = (1, 1, 2)  # the peak of a step is reached in the second one, with the moments of Adam there
MATRIX, PRODUCTS = 4096, 5
AXES = {"L": (-1, 0, 0), "R": (1, 0, 0), "P": (0, -1, 0), "A": (0, 1, 0), "I": (0, 0, -1), "S": (0, 0, 1)}


class Skipped(Exception):
    """A run that is not possible here; the message says why."""


def prepare(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the brain masks and the one affine that all methods share."""
    from nio_pydra.engines.affine import align
    from nio_pydra.engines.masks import make_mask

    pair, runtime = request["pair"], _runtime(request)
    for role in ("fixed", "moving"):
        make_mask(Path(pair[role]), Path(pair[f"{role}_mask"]), runtime, skull_stripped=True)
    return align(*_scans(pair), Path(pair["affine"]), runtime)


def engine(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Register by an engine of this package, propagate the labels and score them; the whole record comes along."""
    method = choose_method(request["engine"], request["preset"], weights=_weights(request))
    scored = _score(request["pair"], _register(request, method, folder), folder)
    return {**scored, "record": json.loads((folder / "record.json").read_text())}


def memory(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Register a made-up pair whose network grid has the size asked for, with a few steps of each level."""
    from steps import smooth_pair

    from nio_pydra.networks.checkpoints import load_network
    from nio_pydra.spatial.images import save_image

    _, metadata = load_network(_weights(request))
    affine = np.eye(4)
    affine[:3, :3] = np.array([AXES[code] for code in metadata["orientation"]]).T * metadata["voxel_size_mm"]
    pair = {}
    for role, image in zip(("fixed", "moving"), smooth_pair(tuple(request["grid"])), strict=True):
        pair[role] = str(save_image(image, affine, folder / f"{role}.nii.gz"))
        pair[f"{role}_mask"] = str(save_image(image > 0, affine, folder / f"{role}_mask.nii.gz", np.uint8))
    pair["affine"] = str(write_h5(Transform((np.eye(4),)), folder / "affine.h5"))
    paper = choose_method("nio_m", "paper", weights=_weights(request))
    schedule = replace(paper.settings.network, iterations=MEMORY_ITERATIONS)
    method = Method("nio_m", "", replace(paper.settings, network=schedule))
    record = _register({**request, "pair": pair}, method, folder)
    if record["network_grid"] != request["grid"]:
        raise RuntimeError(f"the network grid became {record['network_grid']}: expected {request['grid']}")
    return _numbers(record)


def arithmetic(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare the arithmetic of a level-3 step with what the machine's bfloat16 matrix product reaches."""
    import torch
    from steps import matrix_product_flops, network_and_pair, step_flop, step_seconds

    from nio_pydra.engines.devices import choose_precision
    from nio_pydra.optimize.resources import keep_freed_memory, limit_threads

    if choose_precision(Runtime(), torch.device("cpu")) != torch.bfloat16:
        raise Skipped("this CPU has no bfloat16 instructions")
    shape = tuple(request["grid"])
    keep_freed_memory(int(np.prod(shape)))
    limit_threads(request["threads"])
    network, pair = network_and_pair(shape, _weights(request))
    before = matrix_product_flops(MATRIX, PRODUCTS)
    wall, processor = np.median(step_seconds(network, pair, 3, request["steps"], torch.bfloat16), axis=0)
    after = matrix_product_flops(MATRIX, PRODUCTS)
    product = np.maximum(before, after)
    flop = step_flop(network, shape)
    achieved = np.array([flop / wall, flop / processor])
    schedule = choose_method("nio_m", "paper").settings.network.iterations
    return {
        "step_flop": flop,
        "paper_flop": sum(n * step_flop(network, shape, level) for level, n in enumerate(schedule, start=1)),
        "step_seconds": wall,
        "step_processor_seconds": processor,
        "step_flops": achieved.tolist(),
        "matrix_product_flops": product.tolist(),
        "share": (achieved / product).tolist(),
    }


TASKS = {"prepare": prepare, "engine": engine, "memory": memory, "arithmetic": arithmetic}


def main() -> int:
    """Run one request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    answer = Path(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="run-", dir=answer.parent) as folder:
        try:
            result = TASKS[request["task"]](request, Path(folder))
        except (Skipped, InputError, ProgramError) as reason:
            result = {"skipped": str(reason)}
    result["versions"] = {"python": platform.python_version(), **_versions()}
    with atomic_path(answer) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _runtime(request: dict[str, Any]) -> Runtime:
    return Runtime(device="cpu", threads=request["threads"], precision=request.get("precision", "auto"))


def _weights(request: dict[str, Any]) -> Path | None:
    return Path(request["weights"]) if request.get("weights") else None


def _scans(pair: dict[str, str]) -> list[ScanFiles]:
    return [ScanFiles(Path(pair[role]), Path(pair[f"{role}_mask"])) for role in ("fixed", "moving")]


def _register(request: dict[str, Any], method: Method, folder: Path) -> dict[str, Any]:
    """Call the engine; give back its record."""
    from nio_pydra.engines.registration import register

    pair = request["pair"]
    files = register(*_scans(pair), Path(pair["affine"]), folder, method, runtime=_runtime(request))
    return dict(json.loads(files.record.read_text()))


def _score(pair: dict[str, str], record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Numbers of a finished registration, with the Dice of its labels."""
    from nio_pydra.engines.registration import propagate_labels, score
    from nio_pydra.metrics import mean_of_lowest

    moved = propagate_labels(
        Path(pair["moving_labels"]), Path(pair["fixed"]), folder / "forward_xfm.h5", folder / "labels.nii.gz"
    )
    scored = score(
        folder / "record.json", Path(pair["fixed_labels"]), moved, folder / "record.json", Path(pair["moving_labels"])
    )
    dice = scored["dice"]
    return {"dice": dice["mean"], "dice_lowest": mean_of_lowest(dice["labels"].values()), **_numbers(record)}


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    kept = ("network_grid", "precision", "weights")
    return {
        "similarity": record["similarity"]["after"],
        "fold_percent": record["fold_percent"],
        "seconds": record["seconds"]["registration"],
        "processor_seconds": record["seconds"]["registration_processor"],
        "peak_memory_mb": record["peak_memory_mb"],
        **{key: record[key] for key in kept if key in record},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    raise SystemExit(main())
