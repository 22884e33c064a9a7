"""Experiment 4: the eight test scans with simulated changes to sub-1000: how far each method falls."""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from common import (
    CLASSICAL,
    DOCS,
    TEST,
    TESTED,
    Comparison,
    cases_of_tables,
    publish,
    read_options,
    run,
    table,
)  # fmt: skip
from experiment_1 import comparisons as unchanged
from nibabel.processing import resample_from_to
from scipy.ndimage import binary_fill_holes, gaussian_filter

from nio_pydra.comparison.statistics import compare_with
from nio_pydra.report.canvas import new_figure
from nio_pydra.spatial.images import load_image, load_labels
from nio_pydra.system.files import atomic_path

NETWORKS = ("lapirn", "ulae", "mpr", "io", "nio_m", "nio_m:fast")
UNCHANGED = "unchanged"
NOISE = 0.1
"""Standard deviation of the noise in each channel, as a share of the 95th percentile of the brain."""
BIAS = 0.25
"""Standard deviation of the logarithm of the bias field within the brain. With 0.3 the affine of sub-1125 is refused as
no alignment, although it is right: then no method is compared."""
BIAS_MM = 40.0
"""Its smoothness: standard deviation of a Gaussian."""
VOXEL_MM = (2.0, 2.0, 3.0)


def invert(image: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image with bright and dark exchanged inside the brain, which stays above zero."""
    top = np.percentile(image[brain], 99.9)
    return np.where(brain, top - np.minimum(image, top) + 0.01 * top, 0)


def bias(image: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image times a strong smooth field; voxels are 1 mm."""
    field = gaussian_filter(rng.standard_normal(image.shape), BIAS_MM, mode="reflect", truncate=3)
    field = (field - field[brain].mean()) / field[brain].std()
    return image * np.exp(BIAS * field)


def noise(image: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image with Rician noise inside the brain."""
    deviation = NOISE * np.percentile(image[brain], 95)
    real, imaginary = rng.normal(0, deviation, (2, *image.shape))
    return np.where(brain, np.hypot(image + real, imaginary), 0)


CHANGES: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray] | None] = {
    "inverted": invert,
    "bias": bias,
    "voxels": None,  # on another grid
    "noise": noise,
}
NOTES = f"""\
Only the moving image is changed, by numbers from a fixed seed; the atlas stays as it is. `inverted`: bright and
dark exchanged inside the brain. `bias`: times a smooth field whose logarithm has a standard deviation of {BIAS:g}
in the brain (Gaussian of {BIAS_MM:g} mm). `voxels`: {VOXEL_MM[0]:g} x {VOXEL_MM[1]:g} x {VOXEL_MM[2]:g} mm, image
and labels; part of what it costs is the labels' own loss. `noise`: Rician, {NOISE:.0%} of the brain's 95th
percentile. The affine is computed anew for each change, and is common to all methods. Unchanged scans are those of
[experiment 1](experiment_1.md). The tables by change come first; those of `nio compare`, after them, are over all
changes together.

Networks of this package see an `inverted` scan the right way round, because a scan that is bright where the atlas is
dark is inverted for them. Until that was so (commit 5266a03), LapIRN had a Dice of 0.194 there, `nio_m:fast` 0.203,
and the affine alone 0.424: both took white matter for grey matter, and the similarity rose while they did, since it is
the square of a correlation. Bright and dark are exchanged on the scan's own voxels (since commit 212310f; when the
sampled scan was inverted, its border became bright, and LapIRN had 0.608, `nio_m:fast` 0.632). So the simulated
inversion is undone nearly exactly; a real scan of another contrast, as T2w, is not, and was not tried.

greedy compares by a correlation as well, and gets no such help: it fails on inverted scans. SyN (`fast`) and NiftyReg
compare by mutual information, to which it makes no difference which tissue is bright."""


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Write the changed scans as a BIDS dataset; return the comparison of the unchanged and that of all changed."""
    plain = unchanged(options)[0]
    dataset = options.out / "experiment_4_data"
    labels = dataset / "derivatives" / "manual"
    _write_dataset(plain, dataset, labels)
    changed = replace(
        plain,
        name="experiment_4",
        title="Experiment 4: eight test scans of OASIS, with simulated changes, to sub-1000",
        dataset=dataset,
        labels=labels,
        methods=(*CLASSICAL, *NETWORKS),
        filters={},
    )
    if options.changes:
        return [plain, *(replace(changed, filters={"acquisition": change}) for change in options.changes)]
    return [plain, changed]


def _write_dataset(plain: Comparison, dataset: Path, labels: Path) -> None:
    for own, root in ((plain.dataset, dataset), (plain.labels, labels)):
        root.mkdir(parents=True, exist_ok=True)
        for path in own.glob("*.*"):
            if path.is_file():
                (root / path.name).write_bytes(path.read_bytes())
    for participant in TEST:
        found = sorted(plain.dataset.glob(f"sub-{participant}/**/*_T1w.nii.gz"))[0]  # the first visit
        drawn = next(plain.labels.glob(f"sub-{participant}/**/{found.name.replace('T1w', 'desc-malf_dseg')}"))
        relative = found.parent.relative_to(plain.dataset)
        for change in CHANGES:
            stem = found.name.removesuffix("_T1w.nii.gz") + f"_acq-{change}"
            targets = dataset / relative / f"{stem}_T1w.nii.gz", labels / relative / f"{stem}_desc-malf_dseg.nii.gz"
            if all(path.is_file() for path in targets):
                continue
            changed = _changed(load_image(found), load_labels(drawn), change, stem)
            for path, image in zip(targets, changed, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(path) as temporary:
                    image.to_filename(temporary)


def _changed(
    image: nib.Nifti1Image, labels: nib.Nifti1Image, change: str, seed: str
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    voxels = image.get_fdata(dtype=np.float32)
    brain = binary_fill_holes(voxels != 0)
    drawn = np.asanyarray(labels.dataobj).astype(np.int16)
    function = CHANGES[change]
    if function is not None:
        found = function(voxels, brain, np.random.default_rng(zlib.crc32(seed.encode())))
        return nib.Nifti1Image(found.astype(np.float32), image.affine), nib.Nifti1Image(drawn, image.affine)
    # RAS, so that the thick slices are axial.
    scale = np.array(VOXEL_MM)
    source, source_labels = (nib.as_closest_canonical(nib.Nifti1Image(own, image.affine)) for own in (voxels, drawn))
    shape = tuple(np.ceil(np.array(source.shape) / scale).astype(int))
    affine = source.affine @ np.diag([*scale, 1])
    affine[:3, 3] = nib.affines.apply_affine(source.affine, (scale - 1) / 2)
    # As wide as a voxel: full width at half maximum.
    blurred = gaussian_filter(source.get_fdata(dtype=np.float32), scale / 2.355)
    coarse = resample_from_to(nib.Nifti1Image(blurred, source.affine), (shape, affine), order=1)
    coarse_labels = resample_from_to(source_labels, (shape, affine), order=0)
    inside = resample_from_to(
        nib.as_closest_canonical(nib.Nifti1Image(brain.astype(np.float32), image.affine)), (shape, affine), order=1
    )
    kept = np.where(inside.get_fdata() >= 0.5, np.maximum(coarse.get_fdata(), 1e-3), 0).astype(np.float32)
    return nib.Nifti1Image(kept, affine), nib.Nifti1Image(np.asanyarray(coarse_labels.dataobj).astype(np.int16), affine)


def _dice(options: argparse.Namespace, chosen: list[Comparison]) -> pd.DataFrame:
    """Return the cases of all changes, and of the unchanged scans by the same methods."""
    plain, changed = (cases_of_tables(options, own) for own in chosen)
    plain = plain[plain["method"].isin(changed["method"])].assign(change=UNCHANGED)
    return pd.concat([plain, changed.assign(change=changed["case"].str.extract(r"_acq-(\w+)")[0])])


def _tables(cases: pd.DataFrame, reference: str) -> str:
    methods, changes = cases["method"].unique(), [UNCHANGED, *CHANGES]

    def means(measure: str) -> pd.DataFrame:
        found = cases.pivot_table(index="method", columns="change", values=measure)
        return found.reindex(index=methods, columns=changes)

    def rows(numbers: pd.DataFrame) -> list[tuple[str, list[float]]]:
        return [(str(method), list(values)) for method, values in numbers.iterrows()]

    dice, tests = means("dice_all"), {}
    for change in changes:
        own = cases[cases["change"] == change]
        if reference in set(own["method"]):
            found = compare_with(
                own, reference, ["all"], tested=[name for name in TESTED if name in set(own["method"])]
            )
            tests[change] = found.set_index("method")["p_holm"] if len(found) else pd.Series(dtype=float)
    tested = [name for name in TESTED if any(name in own for own in tests.values())]
    return "\n\n".join(
        [
            table("Dice, all structures, mean over scans", changes, rows(dice)),
            table("Fall: Dice of a scan unchanged minus Dice of it changed, mean over scans", list(CHANGES),
                  rows(_falls(cases).groupby("method", sort=False).mean().reindex(methods))),
            table(f"p of the difference from {reference}, Holm's correction within a change", changes,
                  [(name, [float(tests.get(change, {}).get(name, np.nan)) for change in changes]) for name in tested]),
            table("Standard deviation of the Jacobian determinant", changes, rows(means("std_jacobian"))),
            table("Folds before they are removed, %", changes, rows(means("fold_percent_raw")), 2),
        ]
    )  # fmt: skip


def _falls(cases: pd.DataFrame) -> pd.DataFrame:
    """Return by how much each method falls from its own unchanged Dice, by method and participant, for each change."""
    dice = cases.pivot(index=["method", "participant"], columns="change", values="dice_all")
    dice = dice.reindex(columns=[UNCHANGED, *CHANGES])
    return -dice[list(CHANGES)].sub(dice[UNCHANGED], axis=0)


def _draw(cases: pd.DataFrame, path: Path) -> None:
    """Draw the falls, scan by scan."""
    falls, methods = _falls(cases), [str(name) for name in cases["method"].unique()][::-1]
    figure = new_figure(11, 0.28 * len(methods) + 1.2, "white", 130)
    axes = figure.subplots(1, len(CHANGES), sharex=True, sharey=True)
    for axis, change in zip(axes, CHANGES, strict=True):
        for place, method in enumerate(methods):
            own = falls.loc[method, change].dropna()
            colour = "#222222" if method.startswith("nio_m") else "#1f77b4"
            if len(own):
                axis.barh(place, own.mean(), color=colour, alpha=0.45)
                axis.plot(own, np.full(len(own), place), "o", color=colour, markersize=2.5)
        axis.set(title=change, xlabel="fall of Dice", yticks=range(len(methods)), yticklabels=methods)
        axis.tick_params(labelsize=7)
        axis.axvline(0, color="0.5", linewidth=0.8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight")


def main() -> int:
    """Run the experiment."""
    options = read_options(__doc__, changes=list(CHANGES))
    if options.changes and not options.register_only:
        raise SystemExit("--changes belongs to --register-only: tables are of all changes.")
    chosen = run(options, comparisons(options))
    if options.publish:
        cases = _dice(options, chosen)
        figure = "experiment_4_falls.png"
        _draw(cases, DOCS / "images" / figure)
        own = f"![Fall of Dice by change](../images/{figure})\n\n{_tables(cases, options.reference)}"
        publish(options, "experiment_4", chosen[1], NOTES, before=own)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
