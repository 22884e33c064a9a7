"""Call the Pydra tasks one by one: masks, affine, registration, labels, score.

    python examples/tasks_one_by_one.py FIXED.nii.gz MOVING.nii.gz OUT_DIR [--skull-stripped] \
        [--labels FIXED_dseg.nii.gz MOVING_dseg.nii.gz] [--engine nio_m] [--preset draft]

Run it twice: the second time every result comes from the cache in OUT_DIR/cache. Each task takes files and gives files,
so that a workflow of your own can hold any of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from nio_pydra.engines.methods import choose_method
from nio_pydra.errors import InputError
from nio_pydra.tasks import AffineAlign, Prepare, PropagateLabels, Register, ScoreLabels


def main() -> None:
    """Read the command line, register the pair, and compare its labels if there are some."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--skull-stripped", action="store_true", help="both images show brains only")
    parser.add_argument("--labels", type=Path, nargs=2, metavar=("FIXED", "MOVING"), help="label images of both")
    parser.add_argument("--engine", default="nio_m")
    parser.add_argument("--preset", help="default: the first of the engine; draft of nio_m is the quickest")
    options = parser.parse_args()
    try:
        choose_method(options.engine, options.preset)  # refuses what does not exist, before the work
        run(options)
    except InputError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    """Call the tasks."""
    cache = options.out.resolve() / "cache"
    images = {"fixed": options.fixed.resolve(), "moving": options.moving.resolve()}

    masks = {
        f"{role}_mask": Prepare(image=image, skull_stripped=options.skull_stripped)(cache_root=cache).mask
        for role, image in images.items()
    }
    aligned = AffineAlign(**images, **masks)(cache_root=cache)
    registered = Register(
        **images,
        **masks,
        affine=aligned.affine,
        affine_record=aligned.record,
        engine=options.engine,
        preset=options.preset,
    )(cache_root=cache)
    results = [registered.forward_xfm, registered.inverse_xfm, registered.warped, registered.record]

    if options.labels:
        fixed_labels, moving_labels = (path.resolve() for path in options.labels)
        moved = PropagateLabels(labels=moving_labels, reference=images["fixed"], transform=registered.forward_xfm)
        propagated = moved(cache_root=cache).propagated
        score = ScoreLabels(
            record=registered.record,
            fixed_labels=fixed_labels,
            propagated_labels=propagated,
            moving_labels=moving_labels,
        )
        scored = score(cache_root=cache).record
        results = [*results[:3], propagated, scored]
        print(f"Dice, mean over labels: {json.loads(Path(scored).read_text())['dice']['mean']:.3f}")

    for file in results:
        print(shutil.copy(file, options.out))


if __name__ == "__main__":
    main()
