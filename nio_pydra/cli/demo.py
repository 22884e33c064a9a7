"""`nio demo`: simulate subjects, register them with the BIDS App, and compare with the truth."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nio_pydra.cli.options import positive, seed
from nio_pydra.engines.names import DEFAULT_ENGINE, ENGINES, get_engine

if TYPE_CHECKING:
    from nio_pydra.report import Comparison
    from nio_pydra.simulation import SimulatedDataset, TrueMap
    from nio_pydra.spatial.transforms import Transform

__all__ = ["Result", "add_arguments", "main", "table"]

ATLAS = "MNI152"


@dataclass(frozen=True)
class Result:
    """Measures of one subject, for the affine alone and for the whole registration.

    Attributes
    ----------
    subject : str
        Name, as ``sub-01``.
    dice_before, dice_after : float
        Mean Dice overlap of the tissues.
    error_before, error_after : tuple of float
        Distance to the true position in mm: mean and 95th percentile over the brain.
    std_jacobian : float
        Standard deviation of the Jacobian determinant.
    fold_percent : float
        Percentage of voxels with folds.
    seconds : float
        Wall time, from affine to measures.
    """

    subject: str
    dice_before: float
    dice_after: float
    error_before: tuple[float, float]
    error_after: tuple[float, float]
    std_jacobian: float
    fold_percent: float
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nio demo`."""
    parser.add_argument("--out", type=Path, default=Path("nio_demo"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument(
        "--subjects", type=positive, default=3, metavar="N", help="number of subjects (default: %(default)s)"
    )
    parser.add_argument("--engine", choices=ENGINES, default=DEFAULT_ENGINE, help="(default: %(default)s)")
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="random seed of the simulation (default: %(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    """Run the demo; return the exit status of the BIDS App."""
    from nio_pydra.bids.ownership import refuse_foreign_folder
    from nio_pydra.cli import bids_app

    refuse_foreign_folder(args.out / "bids", "nio_pydra demo")
    print(f"Simulating {args.subjects} subject(s): the MNI152 template under known deformations", flush=True)
    from nio_pydra.simulation import make_dataset

    dataset = make_dataset(args.out, args.subjects, args.seed)
    derivatives = args.out / f"derivatives_{args.engine}"
    preset = ["--preset", "draft"] if "draft" in get_engine(args.engine).presets else []
    arguments = [dataset.bids_dir, derivatives, "participant", "--participant-label", *dataset.truth]
    arguments += ["--atlas", dataset.atlas, "--atlas-name", ATLAS, "--atlas-labels", dataset.atlas_labels]
    arguments += ["-d", f"simulation={dataset.derivatives}", "--labels-desc", "tissue", "--skull-stripped"]
    arguments += ["--engine", args.engine, *preset, "-w", args.out / "work"]
    command = [str(argument) for argument in arguments]
    print(f"\n{shlex.join(['nio-pydra', *command])}\n", flush=True)
    return bids_app.main(command) or _report(dataset, derivatives, args.out, args.engine)


def _report(dataset: SimulatedDataset, derivatives: Path, out: Path, engine: str) -> int:
    """Compare with the truth, draw the picture and print the table; return 0."""
    from nio_pydra.report import draw_comparisons
    from nio_pydra.spatial.images import load_labels
    from nio_pydra.system.files import write_text

    evaluated = [_evaluate(dataset, derivatives, subject, truth, engine) for subject, truth in dataset.truth.items()]
    results = [result for result, _ in evaluated]
    picture = draw_comparisons(
        [comparison for _, comparison in evaluated],
        load_labels(dataset.atlas_labels),
        out / f"demo_{engine}.png",
        title="SIMULATED subjects (MNI152, deformed by known maps); outlines: the atlas's tissues",
        engine=engine,
    )
    text = table(results, engine)
    table_path = out / f"demo_{engine}.txt"
    write_text(text + "\n", table_path)
    print(f"\n{text}\n\npicture      {picture}\ntable        {table_path}\nderivatives  {derivatives}")
    return 0


def _evaluate(
    dataset: SimulatedDataset, derivatives: Path, subject: str, truth: TrueMap, engine: str
) -> tuple[Result, Comparison]:
    """Compare the transform of one subject with the true one."""
    import nibabel as nib
    import numpy as np

    from nio_pydra.bids.outputs import engine_desc
    from nio_pydra.metrics import dice
    from nio_pydra.report import Comparison
    from nio_pydra.spatial.images import load_image, load_labels
    from nio_pydra.spatial.itk import read_h5
    from nio_pydra.spatial.transforms import Transform, apply_affine, resample

    stem = f"sub-{subject}/anat/sub-{subject}"
    record = json.loads((derivatives / f"{stem}_space-{ATLAS}_desc-{engine_desc(engine)}_record.json").read_text())
    whole = read_h5(derivatives / f"{stem}_from-T1w_to-{ATLAS}_mode-image_xfm.h5")
    # The last step is the affine that the deformation started from.
    affine = Transform((whole.steps[-1],))

    labels = load_labels(dataset.atlas_labels)
    inside = np.argwhere(np.asarray(labels.dataobj) > 0)
    points = apply_affine(labels.affine, inside.astype(float))
    goal = truth.map_points(points)

    def errors(estimate: Transform) -> tuple[nib.Nifti1Image, tuple[float, float]]:
        distances = np.linalg.norm(estimate.map_points(points) - goal, axis=1)
        image = np.full(labels.shape, np.nan)
        image[tuple(inside.T)] = distances
        return nib.Nifti1Image(image, labels.affine), (float(distances.mean()), float(np.percentile(distances, 95)))

    scan = load_image(dataset.bids_dir / f"{stem}_T1w.nii.gz")
    tissues = load_labels(dataset.derivatives / f"{stem}_desc-tissue_dseg.nii.gz")

    def mean_dice(estimate: Transform) -> float:
        moved = resample(tissues, labels, estimate, "nearest")
        return float(np.mean([*dice(np.asarray(labels.dataobj), np.asarray(moved.dataobj)).values()]))

    before, after = errors(affine), errors(whole)
    comparison = Comparison(
        f"sub-{subject}", resample(scan, labels, affine), resample(scan, labels, whole), before[0], after[0]
    )
    result = Result(
        subject=f"sub-{subject}",
        dice_before=mean_dice(affine),
        dice_after=record["dice"]["mean"],
        error_before=before[1],
        error_after=after[1],
        std_jacobian=record["std_jacobian"],
        fold_percent=record["fold_percent"],
        seconds=sum(record["seconds"][part] for part in ("affine", "registration", "files", "measures", "preparation")),
    )
    return result, comparison


def table(results: list[Result], engine: str) -> str:
    """Return the results as a text table. Its title says that the subjects are simulated.

    Parameters
    ----------
    results : list of Result
        One for each subject.
    engine : str
        Name of the engine.
    """
    heads = ["subject", "Dice of tissues", "true error, mm", "95 % below, mm", "std|J|", "folds %", "seconds"]
    rows = [
        [
            r.subject,
            f"{r.dice_before:.3f} -> {r.dice_after:.3f}",
            f"{r.error_before[0]:.2f} -> {r.error_after[0]:.2f}",
            f"{r.error_before[1]:.2f} -> {r.error_after[1]:.2f}",
            f"{r.std_jacobian:.3f}",
            f"{r.fold_percent:.3f}",
            f"{r.seconds:.0f}",
        ]
        for r in results
    ]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in [heads, *rows]]
    title = f"{len(results)} SIMULATED subject(s): affine alone -> {engine}"
    return "\n".join([title, "", lines[0], "-" * len(lines[0]), *lines[1:]])
