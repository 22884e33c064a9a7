"""Compare methods on two subjects in about ten minutes on two cores, without data of your own or with it.

    python examples/compare_two_subjects.py OUT_DIR
    python examples/compare_two_subjects.py OUT_DIR --dataset BIDS --labels DERIVATIVES --desc DESC \
        --atlas ATLAS.nii.gz --atlas-labels ATLAS_dseg.nii.gz --participants 01 02

Without a dataset, two subjects are simulated: the MNI152 template under known deformations, with its tissues as labels.
OUT_DIR/comparison/index.html has the tables and pictures. Two subjects are too few for a statement on which method is
better: with more of them, the same call of `nio compare` makes one.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from nio_pydra.cli import nio
from nio_pydra.simulation import make_dataset

METHODS = "affine,syn:fast,lapirn,nio_m:fast"


def main() -> int:
    """Simulate subjects unless there are some, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="takes the comparison, its cache, and simulated subjects")
    parser.add_argument("--methods", default=METHODS, help="as --engines of nio compare (default: %(default)s)")
    own = parser.add_argument_group("data of your own, all of these")
    own.add_argument("--dataset", type=Path, help="BIDS dataset")
    own.add_argument("--labels", type=Path, help="its derivatives with label images")
    own.add_argument("--desc", default="tissue", help="desc of the label images")
    own.add_argument("--atlas", type=Path)
    own.add_argument("--atlas-labels", type=Path)
    own.add_argument("--participants", nargs="+", metavar="LABEL")
    own.add_argument("--skull-stripped", action="store_true", help="scans and atlas show brains only")
    options = parser.parse_args()
    if options.dataset is None:
        made = make_dataset(options.out / "simulated", subjects=2)
        options.dataset, options.labels, options.skull_stripped = made.bids_dir, made.derivatives, True
        options.atlas, options.atlas_labels = made.atlas, made.atlas_labels
        options.participants = list(made.truth)

    command = ["compare", options.dataset, options.out / "comparison", "--engines", options.methods]
    command += ["--atlas", options.atlas, "--atlas-name", "ATLAS", "--atlas-labels", options.atlas_labels]
    command += ["-d", f"labels={options.labels}", "--labels-desc", options.desc]
    command += ["--skull-stripped"] if options.skull_stripped else []
    command += ["--participant-label", *options.participants] if options.participants else []
    command += ["--work-dir", options.out / "work"]
    words = [str(word) for word in command]
    print(shlex.join(["nio", *words]), flush=True)
    return nio.main(words)


if __name__ == "__main__":
    raise SystemExit(main())
