"""Label maps of whole brains, brought to one space once, from which training images are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from nio_pydra.engines.affine import align_images
from nio_pydra.engines.contract import Runtime
from nio_pydra.errors import InputError
from nio_pydra.spatial.images import load_labels
from nio_pydra.spatial.transforms import Transform, resample
from nio_pydra.system.files import atomic_path, contents_digest

__all__ = [
    "GRID",
    "ORIENTATION",
    "SIDES",
    "STRUCTURES",
    "TISSUES",
    "VENTRICLES",
    "Tissue",
    "brain",
    "prepare_label_maps",
    "tissue_index",
]

GRID = (144, 160, 192)  # voxels of 1 mm, the brain in the middle
ORIENTATION = "LIA"  # LapIRN's


@dataclass(frozen=True)
class Tissue:
    """Structures of one intensity.

    Attributes
    ----------
    name : str
        For people.
    labels : tuple of int
        FreeSurfer labels, left and right together.
    t1, t1_sd : float
        Mean and spread over subjects of its mean intensity in T1-weighted images (white matter about 160), after
        SynthSeg's priors.
    """

    name: str
    labels: tuple[int, ...]
    t1: float
    t1_sd: float


TISSUES = (
    Tissue("cerebrospinal fluid", (24,), 44, 10),
    Tissue("ventricles", (4, 5, 14, 15, 31, 43, 44, 63, 72, 136, 137, 163, 164), 42, 10),
    Tissue("white matter", (2, 41, 85, 251, 252, 253, 254, 255), 160, 10),
    Tissue("cerebral cortex", (3, 42), 96, 9),
    Tissue("cerebellar white matter", (7, 46), 140, 11),
    Tissue("cerebellar cortex", (8, 47), 90, 9),
    Tissue("thalamus", (9, 10, 48, 49), 128, 12),
    Tissue("caudate", (11, 50), 104, 10),
    Tissue("putamen", (12, 51), 118, 12),
    Tissue("pallidum", (13, 52), 146, 12),
    Tissue("brainstem", (16,), 137, 11),
    Tissue("hippocampus", (17, 53), 98, 9),
    Tissue("amygdala", (18, 54), 97, 9),
    Tissue("accumbens", (26, 58), 103, 10),
    Tissue("ventral diencephalon", (28, 60), 138, 12),
    Tissue("vessels", (30, 62), 87, 15),
    Tissue("lesions", (25, 57, 77, 78, 79, 80), 116, 15),
)
#: The labels that segmentations of FreeSurfer are commonly compared by; vessels and specks are none of them.
STRUCTURES = (2, 3, 4, 7, 8, 10, 11, 12, 13, 16, 17, 18, 26, 28, 41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60)
#: Labels of the left and the right side.
SIDES = (
    (2, 41), (3, 42), (4, 43), (5, 44), (7, 46), (8, 47), (10, 49), (11, 50), (12, 51), (13, 52), (17, 53), (18, 54),
    (25, 57), (26, 58), (28, 60), (30, 62), (136, 137), (163, 164),
)  # fmt: skip
VENTRICLES = (4, 43)
#: First and last number of parcels, in aparc+aseg and wmparc, and the structure of which they are part.
PARCELS = (
    (1000, 1999, 3), (2000, 2999, 42), (11100, 11199, 3), (12100, 12199, 42),
    (3000, 3999, 2), (4000, 4999, 41), (5001, 5001, 2), (5002, 5002, 41),
)  # fmt: skip
HEAD = range(500, 1000)  # beyond FreeSurfer's segmentation: what SynthSeg's maps call the rest of the head
OUTSIDE_BRAIN = (24,)  # not kept by a brain mask of its own right


def tissue_index() -> NDArray[np.uint8]:
    """Table from label (0 to 999) to position in `TISSUES`; labels of the head around it count as fluid."""
    table = np.zeros(1000, np.uint8)
    for position, tissue in enumerate(TISSUES):
        table[list(tissue.labels)] = position
    return table


def prepare_label_maps(folder: Path, cache: Path, log: Callable[[str], None] = print) -> list[Path]:
    """Align all label maps of a folder to the first one by an affine, on `GRID`; done once, kept in `cache`.

    Parameters
    ----------
    folder : Path
        Holds ``*.nii.gz`` label maps with FreeSurfer's numbers (SynthSeg's training maps, aseg, aparc+aseg, wmparc),
        about 1 mm.
    cache : Path
        Takes one ``.npz`` for each map: ``labels`` (144, 160, 192) int16 in LIA, zero outside the head's labels.
    log : callable
        Takes one line at a time.

    Returns
    -------
    list of Path
        One for each map, in the order of their names.

    Raises
    ------
    InputError
        If the folder holds fewer than two maps, or a map shows no white matter, has numbers that are none of
        FreeSurfer's segmentation, or cannot be aligned.
    ProgramError
        If the ANTs process fails.
    """
    sources = sorted(folder.glob("*.nii.gz")) if folder.is_dir() else []
    if len(sources) < 2:
        raise InputError(f"{folder} holds {len(sources)} label maps (*.nii.gz): expected at least two to pair.")
    # Named by what went into it: other maps of the same names must not meet the old files.
    first = contents_digest(sources[0])
    targets = [
        cache / f"{source.name.removesuffix('.nii.gz')}-{first}-{contents_digest(source)}.npz" for source in sources
    ]
    reference = None
    for number, (source, target) in enumerate(zip(sources, targets, strict=True), start=1):
        if target.is_file():
            continue
        if reference is None:
            reference = _centred(_oriented(sources[0]))
        labels = reference if source == sources[0] else _aligned(source, reference, sources[0], cache)
        with atomic_path(target) as temporary:
            np.savez_compressed(temporary, labels=labels)
        log(f"prepared {number}/{len(sources)}: {source}")
    return targets


def brain(labels: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Where a label map shows brain (FreeSurfer's own structures, ventricles included)."""
    return (labels > 0) & (labels < 500) & ~np.isin(labels, OUTSIDE_BRAIN)


def _oriented(path: Path) -> NDArray[np.int16]:
    image = load_labels(path)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(ORIENTATION))
    )
    spacing = np.asarray(image.header.get_zooms()[:3])
    if np.abs(spacing - 1).max() > 0.1:
        raise InputError(f"{path} has voxels of {spacing} mm: expected label maps of 1 mm.")
    labels = _structures(nib.orientations.apply_orientation(np.asarray(image.dataobj), turn), path)
    if not np.isin(labels, (2, 41)).any():
        raise InputError(f"{path} has no white matter (labels 2 and 41): expected FreeSurfer's numbers.")
    return labels


def _structures(labels: NDArray[np.integer], path: Path) -> NDArray[np.int16]:
    """Parcels turned into the structures that they are part of; numbers of another kind of map are refused."""
    for first, last, structure in PARCELS:
        labels = np.where((labels >= first) & (labels <= last), structure, labels)
    known = {0, *HEAD, *(label for tissue in TISSUES for label in tissue.labels)}
    if unknown := sorted(set(np.unique(labels).tolist()) - known):
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise InputError(
            f"{path} has labels that FreeSurfer's segmentation lacks ({shown}): give label maps such as aseg or "
            "aparc+aseg, or turn yours into its numbers."
        )
    return labels.astype(np.int16)


def _centred(labels: NDArray[np.int16]) -> NDArray[np.int16]:
    inside = np.argwhere(brain(labels))
    middle = (inside.min(0) + inside.max(0)) // 2
    half = np.array(GRID) // 2
    padded = np.pad(labels, [(h, h) for h in half])
    return padded[tuple(slice(m, m + n) for m, n in zip(middle, GRID, strict=True))].copy()


def _aligned(source: Path, reference: NDArray[np.int16], first: Path, scratch: Path) -> NDArray[np.int16]:
    """A map where it fits `reference`, made of the first one, best; compared at 2 mm."""
    labels = _oriented(source)
    halved = np.diag([2.0, 2.0, 2.0, 1.0])
    fixed, moving = (nib.Nifti1Image(_contrast(each)[::2, ::2, ::2], halved) for each in (reference, labels))
    found = align_images(fixed, moving, Runtime(scratch=scratch), names=(first, source)).affine
    image, grid = (nib.Nifti1Image(each, np.eye(4)) for each in (labels, reference))
    return np.asanyarray(resample(image, grid, Transform((found,)), "nearest").dataobj)


def _contrast(labels: NDArray[np.int16]) -> NDArray[np.float32]:
    means = np.array([tissue.t1 for tissue in TISSUES], np.float32)
    return np.where(brain(labels), means[tissue_index()[labels]], 0).astype(np.float32)
