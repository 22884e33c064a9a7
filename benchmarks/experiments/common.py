"""What the experiments share: a comparison as `nio compare` takes it, its run, and its page in `docs/results`.

Every experiment takes the same options:

    python benchmarks/experiments/experiment_1.py --data DATA --out OUT [--weights DIR] [--methods METHOD,METHOD ...]

`DATA` holds `oasis_malf` and, for experiment 3, `freesurfer_pairs`. Cases that are done with the same images, settings
and weights, in `OUT` or in the tables of `docs/results`, are not run again, whatever the version of the code. So
several calls, on several machines even, can add to what is published; `--tables-only` writes what there is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from nio_pydra.bids.records import done_records, read_record
from nio_pydra.cli import compare, nio
from nio_pydra.cli.dataset import open_dataset, settings_of
from nio_pydra.comparison.cases import records_of
from nio_pydra.comparison.earlier import NO_CASES, EarlierCases, read_cases, read_earlier
from nio_pydra.comparison.scope import cases_of, folder_of
from nio_pydra.engines.methods import parse_method, split_method
from nio_pydra.errors import InputError
from nio_pydra.report.axial import axial_view
from nio_pydra.spatial.images import load_labels
from nio_pydra.system.cores import core_count, processor_name
from nio_pydra.system.files import atomic_path, contents_digest
from nio_pydra.workflows.dataset import register_dataset

DOCS = Path(__file__).parents[2] / "docs"
TEST = ("1003", "1004", "1005", "1101", "1107", "1110", "1116", "1125")
FIRST_VISIT = {"session": ["01", None]}

CLASSICAL = ("affine", "syn:fast", "niftyreg", "greedy")
CONVEXADAM = ("convexadam",)
TESTED = ("syn:fast", "niftyreg", "greedy")
"""Methods that the reference is tested against: chosen before any of them was run."""


@dataclass(frozen=True)
class Comparison:
    """One `nio compare`.

    Attributes
    ----------
    name : str
        Folder of its results.
    title : str
    dataset, labels : Path
        BIDS dataset, and its derivatives with label images.
    desc : str
        ``desc`` of the label images.
    atlas, atlas_labels : Path
    atlas_name : str
    participants : tuple of str
    methods : tuple of str
    filters : mapping
        Entities that the scans must have.
    reference : str
    """

    name: str
    title: str
    dataset: Path
    labels: Path
    desc: str
    atlas: Path
    atlas_labels: Path
    atlas_name: str
    participants: tuple[str, ...]
    methods: tuple[str, ...]
    filters: Mapping[str, object]
    reference: str = "nio_m:fast"

    def options(self, run: argparse.Namespace) -> list[str]:
        """Return the options of `nio compare`."""
        out = run.out / self.name
        filters = run.out / f"{self.name}_filter.json"
        filters.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(filters) as temporary:
            temporary.write_text(json.dumps({"t1w": self.filters}) + "\n")
        tested = [name for name in TESTED if name in self.methods and name != self.reference]
        return [
            *(str(self.dataset), str(out), "--work-dir", str(run.work or run.out / "work")),
            *("--engines", ",".join(self.methods), "--reference", self.reference),
            *(["--test", ",".join(tested)] if tested else []),
            *("--atlas", str(self.atlas), "--atlas-name", self.atlas_name, "--atlas-labels", str(self.atlas_labels)),
            *("-d", f"labels={self.labels}", "--labels-desc", self.desc, "--skull-stripped"),
            *("--bids-filter-file", str(filters), "--participant-label", *self.participants),
            *("--nprocs", str(run.nprocs), "--omp-nthreads", str(run.threads), "--device", run.device),
            *("--title", self.title),
        ]  # fmt: skip


def oasis(
    data: Path,
    name: str,
    title: str,
    methods: Sequence[str],
    *,
    atlas: str = "1000",
    participants: Sequence[str] = TEST,
) -> Comparison:
    """Return a comparison of first visits of `oasis_malf` to one of its participants."""
    dataset = data / "oasis_malf"
    labels = dataset / "derivatives" / "manual"
    return Comparison(
        name, title, dataset, labels, "malf",
        dataset / f"sub-{atlas}" / "anat" / f"sub-{atlas}_T1w.nii.gz",
        labels / f"sub-{atlas}" / "anat" / f"sub-{atlas}_desc-malf_dseg.nii.gz",
        f"OASIS{atlas}", tuple(participants), tuple(methods), FIRST_VISIT,
    )  # fmt: skip


def read_options(doc: str, *, prepare: bool = False, changes: Sequence[str] = ()) -> argparse.Namespace:
    """Return the options of an experiment. Names of weights are looked up in the folder of --weights from now on."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds oasis_malf and freesurfer_pairs")
    parser.add_argument("--out", type=Path, required=True, help="takes the results")
    parser.add_argument("--work", type=Path, help="cache (default: OUT/work)")
    parser.add_argument("--weights", type=Path, help="folder of the weights that methods name, and of authors' ones")
    parser.add_argument(
        "--methods", default="", metavar="METHOD[,METHOD]", help='a part of them; "classical", "network"'
    )
    parser.add_argument("--comparisons", default="", metavar="NAME[,NAME]", help="a part of the comparisons")
    parser.add_argument("--participants", nargs="+", metavar="LABEL", help="a part of them")
    parser.add_argument("--reference", default="nio_m:fast")
    parser.add_argument("--nprocs", type=int, default=1, help="scans at a time")
    parser.add_argument("--threads", type=int, default=2, help="threads of each")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--slim", action="store_true", help="keep records and the slices that pictures show, no transforms"
    )
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--register-only", action="store_true", help="write no tables")
    steps.add_argument("--tables-only", action="store_true", help="register nothing")
    parser.add_argument("--publish", action="store_true", help="write the page in docs/results")
    if prepare:
        steps.add_argument("--prepare", type=Path, metavar="RUN", help="prepare the training instead")
    if changes:
        parser.add_argument("--changes", nargs="+", choices=changes, help="register scans with these alone")
    options = parser.parse_args()
    for name in ("data", "out", "work", "weights", "prepare"):
        if getattr(options, name, None) is not None:
            setattr(options, name, getattr(options, name).absolute())
    if options.publish and (options.comparisons or options.participants):
        parser.error("--publish writes the whole page: leave out --comparisons and --participants")
    if options.weights is not None:
        os.chdir(options.weights)
    return options


def run(options: argparse.Namespace, comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Register what is missing, and write tables; return the comparisons of which something is done."""
    chosen, people = options.comparisons.split(",") if options.comparisons else None, options.participants
    kept = [
        replace(
            own,
            reference=options.reference,
            participants=tuple(name for name in own.participants if not people or name in people),
        )
        for own in comparisons
        if not chosen or own.name in chosen
    ]
    kept = [own for own in kept if own.participants]
    for comparison in kept:
        if not options.tables_only:
            _register(options, comparison)
    if options.register_only:
        return kept
    written = []
    for comparison in kept:
        missing = not_run(options, comparison)
        usable = replace(comparison, methods=tuple(name for name in comparison.methods if name not in missing))
        if not usable.methods:
            continue
        path = published(options, comparison)
        earlier = ["--earlier", str(path)] if path else []
        if nio.main(["compare", *usable.options(options), *earlier, "--tables-only"]) == 0:
            written.append(comparison)
    if not written:
        raise SystemExit(1)
    return written


def not_run(options: argparse.Namespace, comparison: Comparison) -> list[str]:
    """Return the methods of which nothing is done yet."""
    out, path = options.out / comparison.name, published(options, comparison)
    known = set(_table(path)["method"]) if path else set()
    return [name for name in comparison.methods if name not in known and not done_records(folder_of(out, name))]


def published(options: argparse.Namespace, comparison: Comparison) -> Path | None:
    """Write the cases of a comparison that the tables of all experiments hold as one table.

    They are of the same images, settings and weights. Return the path; None if there is none.
    """
    paths = sorted(
        (DOCS / "results").glob("*_cases.tsv"),
        key=lambda path: (path.name != f"{comparison.name}_cases.tsv", path.name),  # its own first
    )
    tables = [table for path in paths if "participant" in (table := read_cases(path))]
    atlas, people = contents_digest(comparison.atlas), [f"sub-{name}" for name in comparison.participants]
    known = pd.concat(tables, ignore_index=True)
    known = known[
        known["method"].isin(comparison.methods) & (known["fixed_digest"] == atlas) & known["participant"].isin(people)
    ]
    digests = {case: _digest(comparison.dataset, case) for case in known["case"].unique()}
    known = known[known["moving_digest"] == known["case"].map(digests)]
    methods = {name: parse_method(name, require_installed=False) for name in known["method"].unique()}
    known = EarlierCases(known, pd.DataFrame()).kept_for(methods).cases
    if known.empty:
        return None
    path = options.out / f"{comparison.name}_published.tsv"
    with atomic_path(path) as temporary:
        known.to_csv(temporary, sep="\t", index=False, na_rep="n/a")
    return path


def _digest(dataset: Path, case: str) -> str | None:
    found = next(dataset.glob(f"{case.split('_')[0]}/**/{case}_T1w.nii.gz"), None)
    return None if found is None else contents_digest(found)


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def _register(options: argparse.Namespace, comparison: Comparison) -> None:
    """Register by one method after the other those that are not done, as `nio compare` does without its tables."""
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    args = parser.parse_args(comparison.options(options))
    dataset = open_dataset(args)
    dataset = replace(dataset, scans=cases_of(dataset.scans, dataset.atlas))
    note_machine(options.out)
    path = published(options, comparison)
    earlier = read_earlier(path, dataset.scans, dataset.atlas) if path else NO_CASES
    for name in _chosen(options.methods, comparison.methods):
        folder, began = folder_of(args.out_dir, name), time.perf_counter()
        try:
            method = parse_method(name, require_installed=False)
            known = earlier.kept_for({name: method}).of(name)
            scans = [scan for scan in dataset.scans if scan.name not in known]
            if not scans:
                continue
            if not _weights_found(name):
                print(f"{comparison.name} {name}: its weights are not in {Path.cwd()}", flush=True)
                continue
            method, done = parse_method(name), records_of(folder, dataset.atlas.space)
            # Whatever the version of the code.
            if all(scan.name in done and method.made(read_record(done[scan.name])) for scan in scans):
                continue
            settings = replace(settings_of(args, dataset, method), figures=False)
            outcomes = register_dataset(scans, dataset.atlases, settings, out_dir=folder, work_dir=args.work_dir)
        except InputError as error:  # the other methods go on
            print(f"{comparison.name} {name}: {error}", flush=True)
            continue
        failed = [f"{outcome.scan.name}: {outcome.reason}" for outcome in outcomes if outcome.reason]
        print(f"{comparison.name} {name}: {time.perf_counter() - began:.0f} s", *failed, sep="\n  ", flush=True)
        if options.slim and not failed:
            _slim(folder, args.work_dir, load_labels(comparison.atlas_labels))


def _chosen(wanted: str, methods: Sequence[str]) -> list[str]:
    if not wanted:
        return list(methods)
    classical = [name for name in methods if name.partition("?")[0] in CLASSICAL]
    parts = {"classical": classical, "network": [name for name in methods if name not in classical]}
    names = {name for text in wanted.split(",") for name in parts.get(text, [text])}
    if unknown := sorted(names - set(methods)):
        raise SystemExit(f"--methods: {', '.join(unknown)} is none of {', '.join(methods)}.")
    return [name for name in methods if name in names]


def _weights_found(name: str) -> bool:
    weights = split_method(name).weights
    return weights is None or Path(weights).is_file()


def note_machine(out: Path) -> None:
    """Add this machine to those that the page names."""
    gpu = gpu_name()
    line = f"{processor_name()}, {core_count()} cores{f', {gpu}' if gpu else ''}, torch {torch.__version__}, "
    line += time.strftime("%Y-%m-%d")
    path = out / "machines.txt"
    out.mkdir(parents=True, exist_ok=True)
    known = path.read_text().splitlines() if path.is_file() else []
    if line not in known:
        with path.open("a") as file:
            file.write(line + "\n")


def gpu_name() -> str | None:
    """Return the name of the GPU; None if there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _slim(folder: Path, work: Path, atlas_labels: nib.Nifti1Image) -> None:
    """Delete transforms, and all but one axial slice of images on the atlas, in the results and in the cache."""
    level, directions = axial_view(atlas_labels).level, nib.io_orientation(atlas_labels.affine)
    axis = int(np.flatnonzero(directions[:, 0] == 2)[0])
    place = level if directions[axis, 1] > 0 else atlas_labels.shape[axis] - 1 - level
    large = {path: path.stat().st_size for path in folder.rglob("sub-*") if path.is_file()}
    large = {path: size for path, size in large.items() if size > 2**18}
    for cached in work.rglob("*"):  # copies; another run can be at work in the same cache
        if cached.is_file() and not cached.is_symlink() and cached.stat().st_size in large.values():
            cached.unlink()
    nib.openers.Opener.default_compresslevel = 9  # for what is mostly zero
    for path in large:
        if "_space-T1w_" in path.name or path.suffix == ".h5":
            path.unlink()
        elif path.name.endswith(".nii.gz") and "_space-" in path.name:
            image = nib.Nifti1Image.from_filename(path)
            voxels = np.moveaxis(np.asanyarray(image.dataobj), axis, 0)
            kept = np.zeros_like(voxels)
            kept[place] = voxels[place]
            slimmed = nib.Nifti1Image(np.moveaxis(kept, 0, axis), image.affine)
            if not path.name.endswith("_dseg.nii.gz"):
                slimmed.set_data_dtype(np.uint8)
            with atomic_path(path) as temporary:
                slimmed.to_filename(temporary)
    nib.openers.Opener.default_compresslevel = 1


def publish(
    options: argparse.Namespace,
    page: str,
    comparison: Comparison,
    notes: str,
    *,
    before: str = "",
    after: str = "",
    others: Sequence[Comparison] = (),
) -> None:
    """Write ``docs/results/<page>.md``, the cases beside it, and the pictures.

    Parameters
    ----------
    options : Namespace
    page : str
        As ``experiment_1``.
    comparison : Comparison
        Its tables, and two of its pictures, are shown.
    notes : str
        What to know, in Markdown.
    before, after : str
        Tables of the experiment's own, in Markdown, before and after those of `nio compare`.
    others : sequence of Comparison
        Their cases are kept beside the page as well.
    """
    source = options.out / comparison.name
    title, _, rest = (source / "summary.md").read_text().partition("\n")
    left_out = ("| Command |", "| Load when", "| Processor |", "| Date |", "| Taken over")
    rest = "\n".join(line for line in rest.splitlines() if not line.startswith(left_out))
    pictures = []
    for figure, name, shown in (
        ("boxes", page, "Dice of every case"),
        ("regularity", f"{page}_jacobian", "Dice over the variation of the Jacobian determinant"),
    ):
        if (source / "figures" / f"{figure}.png").is_file():  # without a method that deforms there is one alone
            shutil.copy(source / "figures" / f"{figure}.png", DOCS / "images" / f"{name}.png")
            pictures.append(f"![{shown}](../images/{name}.png)")
    path = DOCS / "results" / f"{page}.md"
    missing = not_run(options, comparison)
    parts = [
        title,
        f"Written by `benchmarks/experiments/{Path(sys.argv[0]).name}`, which calls `nio compare`. Registered on:",
        machines_of(path, options.out),
        notes,
        f"Not run yet: {', '.join(f'`{name}`' for name in missing)}." if missing else "",
        *pictures,
        before,
        rest.strip(),
        after,
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(part for part in parts if part) + "\n")
    kept = DOCS / "results" / f"{page}_cases.tsv"
    tables = [_table(options.out / own.name / "cases.tsv") for own in (comparison, *others)]
    tables += [_table(kept)] if kept.is_file() else []  # of methods that were not asked for now
    cases = pd.concat(tables).drop_duplicates(["method", "case", "fixed_digest"])
    cases = cases[cases["status"] == "done"]
    with atomic_path(kept) as temporary:
        cases.fillna("n/a").to_csv(temporary, sep="\t", index=False)


def machines_of(page: Path, out: Path) -> str:
    """Return a list in Markdown of the machines that a published page names, and of those of the results here.

    The table of the page keeps cases that were made on the former.
    """
    text = page.read_text() if page.is_file() else ""
    lines = text.partition("Registered on:\n\n")[2].partition("\n\n")[0].splitlines()
    noted = out / "machines.txt"
    lines += [f"- {line}" for line in noted.read_text().splitlines()] if noted.is_file() else []
    return "\n".join(dict.fromkeys(lines))


def table(title: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[float]]], digits: int = 3) -> str:
    """Return a table in Markdown: a row of numbers for each method."""
    lines = [f"## {title}", "", "| Method | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name, values in rows:
        shown = ["–" if np.isnan(value) else f"{value:.{digits}f}" for value in values]
        lines.append("| " + name.replace("_", "\\_") + " | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def cases_of_tables(options: argparse.Namespace, comparison: Comparison) -> pd.DataFrame:
    """Return the cases that were done, as the tables of a comparison have them."""
    cases = pd.read_csv(options.out / comparison.name / "cases.tsv", sep="\t", dtype={"case": str})
    return cases[cases["status"] == "done"]
