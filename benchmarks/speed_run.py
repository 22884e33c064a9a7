"""One run of `speed.py` in a process of its own, so that peak memory, threads and caches are its own.

    python benchmarks/speed_run.py REQUEST.json RESULT.json

The request names a task of `TASKS` and its inputs; the result is what the table needs.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from nio_pydra.engines.contract import Pair, Runtime, brain_only
from nio_pydra.engines.memory import peak_memory_mb
from nio_pydra.errors import InputError, ProgramError
from nio_pydra.spatial.itk import read_affine, write_h5
from nio_pydra.spatial.transforms import DisplacementField, Transform
from nio_pydra.system.files import atomic_path

# Everything that brings torch along is imported where it is used: greedy's process must not carry it.

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # turns RAS mm into LPS mm and back
PACKAGES = ("nio-pydra", "torch", "numba", "numpy", "nibabel", "antspyx", "picsl-greedy")
GREEDY = "-m WNCC 2x2x2 -n 100x100x40 -s 1.5mm 0.5mm"
#: Neither changes the registration: the warp is returned without rounding, and the metric's noise is repeatable.
GREEDY_ALSO = "-wp 0 -seed 1 -V 0"
MEMORY_ITERATIONS = (1, 1, 2)  # the peak of a step is reached in the second one, with the moments of Adam there
MATRIX, PRODUCTS = 4096, 5
AXES = {"L": (-1, 0, 0), "R": (1, 0, 0), "P": (0, -1, 0), "A": (0, 1, 0), "I": (0, 0, -1), "S": (0, 0, 1)}


class Skipped(Exception):
    """A run that is not possible here; the message says why."""


def prepare(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the brain masks and the one affine that all methods share."""
    from nio_pydra.engines.brain_mask import make_brain_mask

    from nio_pydra.engines.affine import align

    pair, runtime = request["pair"], _runtime(request)
    for role in ("fixed", "moving"):
        make_brain_mask(Path(pair[role]), Path(pair[f"{role}_mask"]), skull_stripped=True, runtime=runtime)
    return align(
        Path(pair["fixed"]), Path(pair["moving"]), Path(pair["affine"]),
        fixed_mask=Path(pair["fixed_mask"]), moving_mask=Path(pair["moving_mask"]), runtime=runtime,
    )  # fmt: skip


def engine(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Register by an engine of this package, propagate the labels and score them; the whole record comes along."""
    scored = _score(request["pair"], _register(request, folder), folder)
    return {**scored, "record": json.loads((folder / "record.json").read_text())}


def memory(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Register a made-up pair whose network grid has the size asked for, with a few steps of each level."""
    from steps import smooth_pair

    from nio_pydra.engines.nio import PRESETS
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
    paper = PRESETS["nio_m"]["paper"]
    PRESETS["nio_m"]["paper"] = replace(paper, nio=replace(paper.nio, iterations=MEMORY_ITERATIONS))
    record = _register({**request, "pair": pair, "engine": "nio_m", "preset": "paper"}, folder)
    if record["network_grid"] != request["grid"]:
        raise RuntimeError(f"the network grid became {record['network_grid']}: expected {request['grid']}")
    return _numbers(record)


def arithmetic(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare the arithmetic of a level-3 step with what the machine's bfloat16 matrix product reaches."""
    import torch
    from steps import matrix_product_flops, network_and_pair, step_flop, step_seconds

    from nio_pydra.engines.nio import PRESETS, choose_precision
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
    schedule = PRESETS["nio_m"]["paper"].nio.iterations
    return {
        "step_flop": flop,
        "paper_flop": sum(n * step_flop(network, shape, level) for level, n in enumerate(schedule, start=1)),
        "step_seconds": wall,
        "step_processor_seconds": processor,
        "step_flops": achieved.tolist(),
        "matrix_product_flops": product.tolist(),
        "share": (achieved / product).tolist(),
    }


def greedy(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Register by greedy, with images and warp in memory; propagate and score its labels as for any engine."""
    threads = request["threads"]
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)  # read once, before its first call
    try:
        from picsl_greedy import Greedy3D
    except ImportError:
        raise Skipped("picsl-greedy is not installed (pip install picsl-greedy)") from None
    pair = request["pair"]
    fixed, moving = (brain_only(_image(pair[role]), _image(pair[f"{role}_mask"])) for role in ("fixed", "moving"))
    affine = read_affine(Path(pair["affine"]))
    # Version 1.4 loses a matrix that is handed over in memory; sixteen numbers are quickly read.
    matrix = folder / "affine.mat"
    np.savetxt(matrix, affine, fmt="%.15g")
    command = f"-d 3 -threads {threads} -i fixed moving -it {matrix} -o warp {GREEDY} {GREEDY_ALSO}"
    program, images = Greedy3D(), {"fixed": _to_itk(fixed), "moving": _to_itk(moving)}
    wall, processor = time.perf_counter(), time.process_time()
    program.execute(command, **images, warp=None)
    seconds = {"registration": time.perf_counter() - wall, "registration_processor": time.process_time() - processor}
    field = _from_itk(program["warp"], fixed)
    peak = peak_memory_mb()
    record = {"seconds": seconds, "peak_memory_mb": peak, **_quality(pair, field, affine, folder)}
    (folder / "record.json").write_text(json.dumps(record))
    return _score(pair, record, folder)


TASKS = {"prepare": prepare, "engine": engine, "greedy": greedy, "memory": memory, "arithmetic": arithmetic}


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


def _register(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Call the engine; give back its record."""
    from nio_pydra.engines.registration import register

    pair = {key: Path(path) for key, path in request["pair"].items()}
    files = register(
        pair["fixed"], pair["moving"], pair["affine"], folder,
        engine=request["engine"], preset=request["preset"], weights=_weights(request),
        fixed_mask=pair["fixed_mask"], moving_mask=pair["moving_mask"], runtime=_runtime(request),
    )  # fmt: skip
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


def _quality(pair: dict[str, str], field: DisplacementField, affine: NDArray[np.floating], folder: Path) -> dict:
    """Write the transform and measure it as that of any engine."""
    from nio_pydra.engines.quality import quality
    from nio_pydra.spatial.inversion import invert

    transforms = Transform((field, affine)), Transform((np.linalg.inv(affine), invert(field)))
    write_h5(transforms[0], folder / "forward_xfm.h5")
    fixed, moving, *masks = (_image(pair[key]) for key in ("fixed", "moving", "fixed_mask", "moving_mask"))
    return quality(Pair(fixed, moving, affine, *masks), transforms)


def _image(path: str) -> Nifti1Image:
    return Nifti1Image.from_filename(path)


def _to_itk(image: Nifti1Image) -> Any:
    """SimpleITK image of the same voxels in the same place."""
    sitk = importlib.import_module("SimpleITK")
    affine = LPS @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    made = sitk.GetImageFromArray(np.ascontiguousarray(np.asanyarray(image.dataobj).T))
    made.SetSpacing(spacing.tolist())
    made.SetOrigin(affine[:3, 3].tolist())
    made.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return made


def _from_itk(warp: Any, fixed: Nifti1Image) -> DisplacementField:
    """Field in RAS from the warp of greedy: LPS mm, on the fixed grid, applied before the affine."""
    vectors = importlib.import_module("SimpleITK").GetArrayViewFromImage(warp).transpose(3, 2, 1, 0)
    if vectors.shape != (3, *fixed.shape):
        raise RuntimeError(f"greedy gave a warp of shape {vectors.shape} for the grid {fixed.shape}")
    signs = np.array([-1, -1, 1]).reshape(3, 1, 1, 1)
    return DisplacementField(np.ascontiguousarray(vectors * signs, dtype=np.float32), fixed.affine)


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
