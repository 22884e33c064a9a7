"""A workflow of one's own around the tasks: several scans to an atlas, two at a time, and one number of each.

    python examples/split_workflow.py OUT_DIR

It simulates an atlas and two scans first, so that it needs no data. Everything after that is what a pipeline has to do:
define a workflow for one scan, split it over the scans, and choose a worker. Run it twice: the second time every result
comes from the cache in OUT_DIR/cache.
"""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from fileformats.generic import File
from pydra.compose import python, workflow

from nio_pydra.simulation.subject import Appearance, mni152, random_map, scan
from nio_pydra.workflows.workers import ForkserverWorker
from pydra.tasks.nio import AffineAlign, Prepare, Register


@python.define
def SimilarityOf(record: File) -> float:
    """Return the similarity to the atlas that a registration reached."""
    import json
    from pathlib import Path

    return json.loads(Path(record).read_text())["similarity"]["after"]


@workflow.define(outputs=["warped", "forward_xfm", "similarity"])
def ToAtlas(image: File, atlas: File, atlas_mask: File, engine: str = "affine"):
    """Register one skull-stripped scan. Another engine than the affine alone takes longer: nio_m, syn, ..."""
    prepared = workflow.add(Prepare(image=image, skull_stripped=True))
    pair = {"fixed": atlas, "moving": image, "fixed_mask": atlas_mask, "moving_mask": prepared.mask}
    aligned = workflow.add(AffineAlign(**pair))
    registered = workflow.add(
        Register(**pair, affine=aligned.affine, affine_record=aligned.record, engine=engine, device="cpu")
    )
    similarity = workflow.add(SimilarityOf(record=registered.record))
    return registered.warped, registered.forward_xfm, similarity.out


def simulate(folder: Path) -> tuple[Path, list[Path]]:
    """Write an atlas and two scans of another position, shape and contrast; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    template, atlas, scans = mni152(2), folder / "atlas.nii.gz", []
    nib.save(mni152(3).image, atlas)
    for number in (1, 2):
        random = np.random.default_rng(number)
        image, _ = scan(template, random_map(template, random), Appearance(bias=0.05, noise=0.02, spacing=3), random)
        scans.append(folder / f"scan{number}.nii.gz")
        nib.save(image, scans[-1])
    return atlas, scans


def main(out: Path) -> None:
    """Simulate, register, and print what was reached."""
    cache = out / "cache"
    atlas, scans = simulate(out / "simulated")
    atlas_mask = Prepare(image=atlas, skull_stripped=True)(cache_root=cache).mask
    batch = ToAtlas(atlas=atlas, atlas_mask=atlas_mask).split(image=scans)
    # pydra's own "cf" worker forks, which torch does not survive; this one starts fresh processes.
    done = batch(cache_root=cache, worker=ForkserverWorker, n_procs=2)
    similarities = {image.name: round(value, 3) for image, value in zip(scans, done.similarity, strict=True)}
    (out / "similarity.json").write_text(json.dumps(similarities))
    print(similarities, *done.warped, sep="\n")


# Processes of the worker import this file: without the condition each would run all of it.
if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
