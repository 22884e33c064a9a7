"""Register real scans with networks of different training, and write the table `docs/results/weights.md`.

    python benchmarks/weights_results.py DATASET --labels DATASET/derivatives/manual --freesurfer-pairs DIR \
        --out RUNS --weights "first=first.safetensors" --weights "authors' disp_fea7=LapIRN_disp_fea7.pth"

Every network is used as it is (LapIRN) and as the start of instance optimisation (NIO_m); the default weights and
random ones always take part. The scans are those that no network of ours saw (of the atlas the research network did),
and the two scans of another data set. Runs that are there already are kept: a killed benchmark goes on. What
the table's data hold stays too, unless a network of that name is given that is another one now. `--methods` and
`--networks` may name a part (`--methods` with nothing only writes the table); what never ran is listed as such.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from app_runs import METHODS, Bench, Row, Runs, Scans, named_file, slug, stored_runs, write_table

from nio_pydra.metrics import mean_of_lowest
from nio_pydra.networks import LapIRN, load_network, save_network
from nio_pydra.networks.checkpoints import default_weights
from nio_pydra.system.files import atomic_path
from nio_pydra.training.settings import TrainingSettings

TEST = ("1003", "1004", "1005", "1101", "1107", "1110", "1116", "1125")
APART = ("1107", "1110", "1116", "1125")  # the paper's claim is robustness: the old and the ill
#: Labels of the cerebral cortex: the parcels of Neuromorphometrics, the two sides of FreeSurfer's aseg.
CORTEX = {"malf": range(100, 208), "aseg": (3, 42)}
#: Column to its number of digits.
COLUMNS = {"Dice": 3, "Dice, cortical": 3, "Dice, other": 3, "Dice, lowest 30 % of scans": 3, "std of Jacobian": 2,
           "folds %": 3, "folds before unfolding %": 2, "processor seconds": 0}  # fmt: skip


def main() -> int:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--labels", type=Path, required=True, help="derivatives with desc-malf_dseg label maps")
    parser.add_argument("--freesurfer-pairs", type=Path, help="folder of the two scans with FreeSurfer's labels")
    parser.add_argument(
        "--weights", action="append", type=named_file, default=[], metavar="NAME=FILE", help="of another network"
    )
    parser.add_argument("--out", type=Path, required=True, help="takes the runs")
    parser.add_argument("--speed-runs", type=Path, help="runs of speed.py with the same data, atlas and threads")
    parser.add_argument("--work", type=Path, help="keeps what runs share, as the affines (default: OUT/work)")
    parser.add_argument("--atlas", default="1000", help="participant that serves as the atlas")
    parser.add_argument("--participants", nargs="+", default=TEST)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="those to run now (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=Path, default=Path(__file__).parents[1] / "docs/results/weights.md")
    options = parser.parse_args()
    networks = {"default": default_weights(), "random": options.out / "random.safetensors"}
    for name, file in options.weights:
        if slug(name) in {slug(known) for known in networks}:
            parser.error(f"--weights {name}: expected a name that is not in use")
        networks[name] = file
    if unknown := set(options.networks or ()) - set(networks):
        parser.error(f"--networks: {', '.join(unknown)} is none of {', '.join(networks)}")
    options.out.mkdir(parents=True, exist_ok=True)
    _write_random_weights(networks["random"])
    sets = [Scans(options.dataset, options.labels, "malf", options.atlas, tuple(options.participants))]
    if options.freesurfer_pairs is not None:
        sets.append(_freesurfer_scans(options.freesurfer_pairs, options.out / "freesurfer"))

    rows = {"affine": Row("affine", "affine", None, None)}
    for name, file in networks.items():
        rows |= {f"{method}, {name}": Row(f"{method}, {name}", *how, file) for method, how in METHODS.items()}
    # By method, so that the quick ones are done for all networks first.
    chosen = [f"{method}, {name}" for method in options.methods for name in options.networks or networks]
    bench = Bench(options.out, options.work or options.out / "work", options.threads, options.speed_runs)
    well = [bench.run(rows[name], scans) for name in ["affine", *chosen] if chosen for scans in sets]
    _write(options, bench, sets, rows.values())
    return 0 if all(well) else 1


def _networks(runs: Runs) -> dict[str, str]:
    """Name to digest of those that took part."""
    found = {}
    for row, of in runs.items():
        name = row.partition(", ")[2]
        found.update((name, run["weights"]) for run in of.values() if run["weights"] is not None)
    return found


def _write_random_weights(path: Path) -> None:
    config = load_network(default_weights())[0].config
    torch.manual_seed(0)
    save_network(LapIRN(config), path, {**TrainingSettings().metadata(), "training_data": "none"})


def _freesurfer_scans(folder: Path, out: Path) -> Scans:
    """Write the two scans, cropped by FreeSurfer's conform (LIA, 1 mm), as a BIDS dataset."""
    labels = out / "derivatives" / "aseg"
    for root in (out, labels):
        root.mkdir(parents=True, exist_ok=True)
        description = {"Name": "Two scans with labels of FreeSurfer", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
        if root == labels:
            description |= {"DatasetType": "derivative", "GeneratedBy": [{"Name": "FreeSurfer"}]}
        (root / "dataset_description.json").write_text(json.dumps(description))
    sources = {
        "fsatlas": [("l2r2019_subject_1_vol", "vol_data"), ("l2r2019_subject_1_seg", "vol_data")],
        "fsother": [("voxelmorph_test_scan", "vol"), ("voxelmorph_test_scan", "seg")],
    }
    for participant, parts in sources.items():
        names = (f"sub-{participant}_T1w", f"sub-{participant}_desc-aseg_dseg")
        for root, name, (file, key) in zip((out, labels), names, parts, strict=True):
            target = root / f"sub-{participant}" / "anat" / f"{name}.nii.gz"
            if target.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(f"{name}.json").write_text(json.dumps({"SkullStripped": True} if root == out else {}))
            volume = np.load(folder / f"{file}.npz")[key]
            affine = np.array([[-1.0, 0, 0, 80], [0, 0, 1, -112], [0, -1, 0, 96], [0, 0, 0, 1]])
            with atomic_path(target) as temporary:
                nib.Nifti1Image(volume.astype(np.int16 if root == labels else np.float32), affine).to_filename(
                    temporary
                )
    return Scans(out, labels, "aseg", "fsatlas", ("fsother",))


def _figures(scans: Scans, record: dict[str, Any]) -> dict[str, float | None]:
    """What `COLUMNS` shows of one scan."""
    labels = {int(label): value for label, value in record["dice"]["labels"].items()}
    cortical = [value for label, value in labels.items() if label in CORTEX[scans.desc]]
    other = [value for label, value in labels.items() if label not in CORTEX[scans.desc]]
    values = (
        record["dice"]["mean"],
        float(np.mean(cortical)),
        float(np.mean(other)),
        None,  # of several scans only
        record["std_jacobian"],
        record["fold_percent"],
        (record.get("before_unfolding") or {}).get("fold_percent"),
        record["seconds"]["registration_processor"],
    )
    return dict(zip(COLUMNS, values, strict=True))


def _summary(figures: list[list[float | None]]) -> list[float | None]:
    """Means over scans."""
    columns = list(zip(*figures, strict=True))
    row = [None if None in column else float(np.mean(column)) for column in columns]
    row[list(COLUMNS).index("Dice, lowest 30 % of scans")] = mean_of_lowest(columns[0])
    return row


def _write(options: argparse.Namespace, bench: Bench, sets: list[Scans], rows: Iterable[Row]) -> None:
    runs = stored_runs(options.table)
    for row in rows:
        for scans in sets:
            bench.update(runs, row, scans, lambda record, scans=scans: _figures(scans, record))
    sections = {
        f"All {len(sets[0].participants)} test scans": sets[0].participants,
        **{f"sub-{p} alone": (p,) for p in APART if p in sets[0].participants},
        **{f"sub-{p} to sub-{scans.atlas}, another data set": (p,) for scans in sets[1:] for p in scans.participants},
    }
    lines = [
        "# What the weights are worth",
        "",
        f"Written by `benchmarks/weights_results.py`. Atlas: sub-{options.atlas}; registered to it: "
        f"{', '.join('sub-' + p for p in options.participants)}. Dice is the mean over the labels that both scans "
        "have; 'other' are all labels but those of the cortex (small vessels and fluid among them). "
        "One affine for all rows. 'Random' is the untrained architecture of the default weights. The authors trained "
        "on OASIS, so these scans are not held out for their networks; the atlas is one of the 15 scans that the "
        "research network learned from. Processor seconds add up all threads and leave out affine, reading and "
        "writing; rows did not all run on the same day, and the shared machine is up to twice as slow on some.",
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, {options.threads} threads per run.",
        "",
        "| weights | SHA-256 |",
        "|---|---|",
        *(f"| {name} | {digest} |" for name, digest in _networks(runs).items()),
    ]
    for title, participants in sections.items():
        lines += ["", f"## {title}", "", "| method, weights | " + " | ".join(COLUMNS) + " |"]
        lines.append("|---" * (1 + len(COLUMNS)) + "|")
        for row, of in runs.items():
            done = [[of[p].get(column) for column in COLUMNS] for p in participants if p in of]
            if len(done) < len(participants):  # means over other scans could not be compared
                lines.append(f"| {row} |" + f" {len(done)} of {len(participants)} run |" + " |" * (len(COLUMNS) - 1))
                continue
            values = _summary(done) if len(done) > 1 else done[0]
            shown = ["-" if v is None else f"{v:.{n}f}" for v, n in zip(values, COLUMNS.values(), strict=True)]
            lines.append(f"| {row} | " + " | ".join(shown) + " |")
    write_table(options.table, lines, runs)


if __name__ == "__main__":
    raise SystemExit(main())
