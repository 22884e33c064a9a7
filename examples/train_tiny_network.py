"""Train a tiny network on toy brains in about two minutes, and see that it aligns brains that it never saw.

    python examples/train_tiny_network.py OUT

The toy brains are label maps of shells with lobes, so no data is needed. Real training is the same with more of
everything: see docs/training.md.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the commands set it too: images are made beside the training

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from nio_pydra.networks import LapIRNConfig
from nio_pydra.training.loop import train
from nio_pydra.training.maps import prepare_label_maps
from nio_pydra.training.pairs import SyntheticImages
from nio_pydra.training.settings import Stage, TrainingSettings
from nio_pydra.training.validation import Validation

SIZE = 128  # voxels of 1 mm
BRAINS, HELD_OUT = 8, 2
#: Ellipsoids, as only those have a pose that an affine can find: longest from front to back, wider than high.
PROPORTIONS = (0.9, 1.05, 0.8)
#: Outer radius in mm, before that, and labels, left and right: fluid, cortex, white matter, thalamus, ventricle.
SHELLS = ((58, 24, 24), (54, 3, 42), (44, 2, 41), (24, 10, 49), (12, 4, 43))
SETTINGS = TrainingSettings(
    network=LapIRNConfig(encoder_channels=8, channels=8, head_channels=(8, 8, 8)),
    stages=(Stage(1, 150, 3e-3), Stage(2, 400, 2e-3, crop=32)),
    validate_every=50,
    smoothness=0.2,
    label_weight=2.0,
    held_out=HELD_OUT,
)


def toy_brain(rng: np.random.Generator) -> NDArray[np.int16]:
    """Shells whose radii vary smoothly with the direction, each brain's in its own way."""
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    x, y, z = np.meshgrid(*(axis / proportion for proportion in PROPORTIONS), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    directions = np.stack([x, y, z]) / np.maximum(radius, 1)
    labels = np.zeros((SIZE,) * 3, np.int16)
    for limit, left, right in SHELLS:
        lobes = sum(
            rng.normal(0, 0.05) * np.sin(3 * np.tensordot(rng.standard_normal(3), directions, 1) + rng.uniform(0, 6))
            for _ in range(4)
        )
        inside = radius < limit * (1 + lobes)
        labels[inside] = np.where(x < 0, left, right)[inside]
    return labels


def main(out: Path) -> tuple[float, float]:
    """Make the brains, train, and return the held-out Dice before and after registration."""
    rng = np.random.default_rng(0)
    folder = out / "label_maps"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(BRAINS):
        nib.save(nib.Nifti1Image(toy_brain(rng), np.eye(4)), folder / f"brain{number}.nii.gz")
    source = SyntheticImages(prepare_label_maps(folder, out / "maps"), SETTINGS.synthesis, HELD_OUT)
    network = train(SETTINGS, source, out / "run")
    validation = Validation(source, 2)
    before, after = validation.score(None), validation.score(network, 2)
    assert before is not None and after is not None
    print(f"held-out brains: aligned by an affine {before}; by the network {after}")
    print(out / "run" / "weights.safetensors")
    return before.value, after.value


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tiny_network"))
