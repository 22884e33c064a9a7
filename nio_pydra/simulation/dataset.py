"""A BIDS dataset of simulated subjects, with its atlas and the subjects' labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from nio_pydra import __version__
from nio_pydra.simulation.subject import TISSUES, Appearance, TrueMap, mni152, random_map, scan
from nio_pydra.spatial.images import save_image
from nio_pydra.system.files import write_text

__all__ = ["SimulatedDataset", "make_dataset"]

ATLAS_SPACING = 2  # mm
# Scanners differ: subject n gets appearance n, starting again after the last.
APPEARANCES = (
    Appearance(contrast=1.0),
    Appearance(contrast=0.75, bias=0.20, orientation="LPS"),
    Appearance(contrast=1.35, noise=0.06, orientation="PIR"),
)
NOTICE = (
    "SIMULATED subjects: the MNI152 template (ICBM 2009a, as shipped with nilearn), deformed by known random "
    "maps, turned, scaled, with another contrast, inhomogeneity and noise. No scan of a person is among them."
)


@dataclass(frozen=True)
class SimulatedDataset:
    """Files of a simulated dataset, and its true maps.

    Attributes
    ----------
    bids_dir : Path
        Raw BIDS dataset.
    derivatives : Path
        Derivative dataset with tissue labels, ``desc-tissue_dseg``.
    atlas, atlas_labels : Path
        Undeformed template at 2 mm and its tissue labels.
    truth : dict of str to TrueMap
        Map from atlas to subject by participant label ("01").
    """

    bids_dir: Path
    derivatives: Path
    atlas: Path
    atlas_labels: Path
    truth: dict[str, TrueMap]


def make_dataset(folder: Path, subjects: int = 3, seed: int = 0) -> SimulatedDataset:
    """Simulate subjects and write them as a BIDS dataset; the same seed gives the same files.

    Parameters
    ----------
    folder : Path
        Folder for ``bids/``, ``bids/derivatives/simulation/`` and ``atlas/``.
    subjects : int
        Number of subjects.
    seed : int
        Random seed. Subject n does not depend on the number of subjects.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    bids_dir, atlas_dir = folder / "bids", folder / "atlas"
    derivatives = bids_dir / "derivatives" / "simulation"
    # Written first, because they show the next run that the folder is its own.
    generator_of = [{"Name": "nio_pydra demo", "Version": __version__, "Description": NOTICE}]
    description = {"BIDSVersion": "1.10.0", "License": "ICBM template licence", "GeneratedBy": generator_of}
    _save_json(
        {"Name": "SIMULATED subjects (nio_pydra demo)", "DatasetType": "raw", **description},
        bids_dir / "dataset_description.json",
    )
    _save_json(
        {"Name": "True tissues of SIMULATED subjects", "DatasetType": "derivative", **description},
        derivatives / "dataset_description.json",
    )
    atlas = mni152(ATLAS_SPACING)
    made = SimulatedDataset(
        bids_dir=bids_dir,
        derivatives=derivatives,
        atlas=_save(atlas.image, atlas_dir / "MNI152_T1w.nii.gz"),
        atlas_labels=_save(atlas.labels, atlas_dir / "MNI152_desc-tissue_dseg.nii.gz"),
        truth={},
    )
    _save_json({"SkullStripped": True}, atlas_dir / "MNI152_T1w.json")
    template = mni152(1)
    names = [f"{number:02d}" for number in range(1, subjects + 1)]
    for number, name in enumerate(names):
        generator = np.random.default_rng([seed, number])
        truth = random_map(template, generator)
        image, labels = scan(template, truth, APPEARANCES[number % len(APPEARANCES)], generator)
        stem = Path(f"sub-{name}", "anat", f"sub-{name}")
        _save(image, bids_dir / f"{stem}_T1w.nii.gz")
        _save_json({"SkullStripped": True, "Description": NOTICE}, bids_dir / f"{stem}_T1w.json")
        _save(labels, derivatives / f"{stem}_desc-tissue_dseg.nii.gz")
        made.truth[name] = truth

    _save_text(NOTICE + "\n", bids_dir / "README")
    _save_text("participant_id\n" + "".join(f"sub-{name}\n" for name in names), bids_dir / "participants.tsv")
    rows = "".join(f"{index}\t{tissue}\n" for index, tissue in TISSUES.items())
    _save_text("index\tname\n" + rows, derivatives / "desc-tissue_dseg.tsv")
    return made


def _save(image: nib.Nifti1Image, path: Path) -> Path:
    return save_image(np.asarray(image.dataobj), image.affine, path, dtype=image.get_data_dtype())


def _save_json(content: dict[str, object], path: Path) -> None:
    _save_text(json.dumps(content, indent=2) + "\n", path)


def _save_text(text: str, path: Path) -> None:
    write_text(text, path)
