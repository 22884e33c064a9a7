"""Weights for the chest: those of the package, adapted to the simulated motions 1 to 5 of the chest experiment.

    python benchmarks/experiments/chest_weights.py --data DATA --out OUT [--minutes N]

Write `OUT/chest.safetensors`, with which `chest.py` registers the pair of elastix and the motions 6 to 10, which were
not learned from. `OUT` is that of `chest.py`. A killed run resumes.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from chest_cases import PARTS

from nio_pydra.engines.contract import Runtime
from nio_pydra.networks import load_network, save_network
from nio_pydra.profiles import LUNG
from nio_pydra.spatial.itk import write_h5
from nio_pydra.spatial.transforms import Transform
from nio_pydra.training.adaptation import AdaptationSettings, Aligned, adapt

LEARNED = 5
"""Motions that are learned from: DIR-Lab's cases 1 to 5. The last of them is held out to stop on."""
NETWORK_MM = 2.0
STEPS = (3000, 3000, 0)
PATIENCE = 20
"""Validations in a row, of 12 steps each, without a better one that end a level."""
LEARNING_RATE = 3e-4
"""Breathing moves farther than heads differ."""
FILE = "chest.safetensors"


def main() -> None:
    """Adapt the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds lung")
    parser.add_argument("--out", type=Path, required=True, help="takes the weights; of chest.py")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="time after which no step is taken (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args()
    work = options.out / "weights"
    work.mkdir(parents=True, exist_ok=True)
    network, metadata = load_network()
    start, still = work / "start.safetensors", work / "identity.h5"
    save_network(network, start, {**metadata, "voxel_size_mm": NETWORK_MM})
    write_h5(Transform((np.eye(4),)), still)
    cases = PARTS["breathing"](options.data, options.out / "data" / "breathing", LEARNED)
    found = adapt(
        cases[0].pair.fixed, [Aligned(case.pair.moving, still) for case in cases], work,
        AdaptationSettings(
            iterations=STEPS, learning_rate=LEARNING_RATE, patience=PATIENCE, minutes=options.minutes
        ),
        weights=start, runtime=Runtime(device=options.device, threads=options.threads), profile=LUNG,
    )  # fmt: skip
    shutil.copy(found, options.out / FILE)


if __name__ == "__main__":
    main()
