"""Experiment on the chest: a real pair of CTs, ten simulated expirations and real breathing in MR, all with landmarks.

    python benchmarks/experiments/chest.py --data DATA --out OUT [--parts PART,PART] [--methods METHOD,METHOD]

`DATA` holds `lung` and `liver_4dmri`. What is done, in `OUT` or in the table of `docs/results`, is not done again, so
several calls, on several machines even, can add to what is published.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from chest_cases import NOISE_HU, PARTS, WRONG_POINT, Case
from chest_figures import draw_errors, draw_overlay
from chest_weights import FILE, LEARNED
from common import DOCS, machines_of, note_machine

from nio_pydra import __version__
from nio_pydra.comparison.earlier import is_made_by, read_cases
from nio_pydra.comparison.landmark_pairs import LandmarkPair, initial_record, is_done, register_landmarks
from nio_pydra.comparison.scope import folder_of
from nio_pydra.engines.contract import Runtime
from nio_pydra.engines.methods import parse_method
from nio_pydra.errors import ComputationError, InputError, ProgramError
from nio_pydra.metrics import landmark_errors
from nio_pydra.networks import LapIRN, load_network, save_network
from nio_pydra.spatial.images import load_image
from nio_pydra.spatial.itk import read_h5
from nio_pydra.spatial.transforms import Transform
from nio_pydra.system.files import atomic_path, contents_digest, read_json

INITIAL = "no registration"
AFFINE = "affine"
RANDOM = "random.safetensors"
"""Weights that were never trained, written into OUT."""
METHODS = (
    AFFINE, "syn:fast", "greedy", "niftyreg", "lapirn:chest", "io:chest",
    "nio:paper?smoothings=3&network.augmentation=0.035", "nio_m:chest", "nio_m:chest_fast",
)  # fmt: skip
STARTS = ('io:chest?start="zero"', f"nio_m:chest@{RANDOM}")
"""The same without what the weights know of brains."""
ABLATION = (
    "nio_m:chest?smoothings=0",
    "nio_m:chest?network.augmentation=0.0",
    "nio_m:chest?smoothings=0&network.augmentation=0.0",
)
"""NIO_m without the deformation model, without the augmentation, without both."""
WEIGHTED = tuple(f"{name}@{FILE}" for name in ("lapirn:chest", "io:chest", "nio_m:chest", "nio_m:chest_fast"))
"""With the weights of `chest_weights.py`, on cases that these have not learned from."""
SHORT = {
    METHODS[6]: "nio, as nio_m:chest",
    STARTS[0]: "io:chest from zero",
    STARTS[1]: "nio_m:chest from random weights",
    ABLATION[0]: "nio_m:chest, no B-spline",
    ABLATION[1]: "nio_m:chest, no augmentation",
    ABLATION[2]: "nio_m:chest, neither",
    **{name: f"{name.partition('@')[0]}, chest weights" for name in WEIGHTED},
}
ABLATION_TITLE = "Parts of the method, and other starts than the weights for brains, mm and std|J|:"
ABLATION_ROWS = ("io:chest", STARTS[0], "nio_m:chest", *STARTS[1:], *ABLATION)
WEIGHTS_TITLE = """\
The weights for brains, and the same adapted to the simulated motions 1 to 5 until they got no better on the fifth
(`chest_weights.py`), mm and std|J|. The simulated cases here have other motions, but the scan is the one that was
learned from:"""
WEIGHTS_ROWS = tuple(name for weighted in WEIGHTED for name in (weighted.partition("@")[0], weighted))
NETWORK_MM = {"elastix": 2.5, "breathing": 2.0, "liver": 2.0}
"""Edge of the voxels in which the networks' engines compare images, instead of the 1.5 mm of their presets: no smaller
than the smallest of the images themselves, and many times faster on a processor."""
NETWORKS = ("lapirn", "io", "nio", "nio_m")
ELASTIX_MM = 1.47
"""Mean error of the published result of elastix on its pair, over all 51 landmarks."""
ABLATED = {"elastix": 1, "breathing": 2, "liver": 0}
"""Number of cases of each part, from the first, that the ablation and the other starts are run on."""
CHOSEN = {"elastix": 1, "breathing": 3, "liver": 0}
"""Number of cases of each part, from the first, on which the settings of `nio_m:chest_fast` were chosen."""


TITLES = {
    "elastix": "A real pair of CTs",
    "breathing": "Simulated expiration, with the motion of DIR-Lab's ten cases",
    "liver": "Breathing in MR of the liver",
}
SUMMARIES = (
    ("Mean", "mean", "mean", ".2f"),
    ("Median", "median", "mean", ".2f"),
    ("95 %", "p95", "mean", ".2f"),
    ("Below 1.2 mm", "below_1.2mm", "mean", ".0%"),
    ("Snapped", "snapped_mean", "mean", ".2f"),
    ("std\\|J\\|", "std_jacobian", "mean", ".3f"),
    ("Folds, %", "fold_percent", "mean", ".3f"),
    ("Processor seconds", "processor_seconds", "mean", ".0f"),
    ("Worst case", "mean", "max", ".2f"),
)
"""Last rows of a table: title, column, what is taken over the cases, and format. The last one needs several cases."""
NOTES = f"""\
Target registration error: fixed landmarks are pushed through the map from fixed to moving, and the distance to the
moving landmarks is measured in mm. The last rows are over the cases, whose number is in brackets, that all methods
have done which have done at least half of them.
`Snapped`: the mapped landmark is first moved to the nearest voxel. Processor seconds are those of the registration,
without the affine, over the cases that were registered without a GPU; their number is in brackets where it is smaller.
`nio_m:chest`, `io:chest` and `lapirn:chest` have
the settings of the paper for the chest, in voxels of {" / ".join(f"{mm:g}" for mm in NETWORK_MM.values())} mm
(elastix / breathing / liver). They start from the package's weights, which were trained on brains. So `lapirn:chest`
is not the LapIRN of the paper's Table 2, which was trained on chests.
`nio_m:chest_fast` has the cheap schedule of the brain's `fast`. Its smoothness (control points 3 voxels apart, weight
0.8, no penalty of volume change) and number of steps were chosen among sixteen settings on the pair of elastix and on
the simulated motions 1 to 3, so its numbers there are those of a choice; motions 4 to 10 are a test. No other method
was tuned."""
PART_NOTES = {
    "elastix": f"""\
Baseline (fixed, at half resolution) and follow-up (moving) of one right lung, 51 landmarks, after an affine by ANTs
that is common to all. Landmark {WRONG_POINT}, counted from 0, looks wrong, so it is left out in the second table. The
published result of elastix has {ELASTIX_MM} mm over all 51 landmarks (not computed here). The follow-up was made from
that result by its own inverse, so its intensities have been interpolated twice.""",
    "breathing": f"""\
One real CT is the inspiration (fixed). The expiration (moving) is made from it by a smooth map that follows the
landmarks of one DIR-Lab case, scaled into the box of this lung, and stands still at ribs and spine. The lung becomes
denser as it becomes smaller, and both scans get noise of {NOISE_HU:g} HU of their own. The true map is known
everywhere. It is smooth, and the vessels are the same in both: the numbers are smaller than on two real scans. The
lung mask of the expiration is the true one, for all methods that use it. No affine is computed beforehand, except for
the method `affine`.""",
    "liver": """\
Expiration (fixed) to two states of breathing (moving) of four subjects, MR in sagittal slices 4 or 5 mm apart, without
a mask: the whole field of view is compared. Points in the liver and outside are averaged apart. They were set on
slices, so about 2 mm of error are theirs. An affine by ANTs is common to all: without one, organs that move by 20 mm
are out of reach for some methods. Images: von Siebenthal et al. 2007, ETH Zurich, from the collection pTVreg, for
non-commercial use.""",
}


def read_options() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds lung and liver_4dmri")
    parser.add_argument("--out", type=Path, required=True, help="takes the results")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="PART[,PART]", help="(default: %(default)s)")
    parser.add_argument("--methods", default="", metavar="METHOD[,METHOD]", help="a part of them")
    parser.add_argument("--cases", type=int, metavar="N", help="the first N cases of each part")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--register-only", action="store_true", help="write no tables")
    steps.add_argument("--tables-only", action="store_true", help="register nothing")
    parser.add_argument("--publish", action="store_true", help="write the page in docs/results")
    options = parser.parse_args()
    if options.publish and (options.cases or options.parts != ",".join(PARTS)):
        parser.error("--publish writes the whole page: leave out --parts and --cases")
    options.data, options.out = options.data.absolute(), options.out.absolute()
    return options


def methods_of(case: Case, number: int) -> tuple[str, ...]:
    """Return the methods of a case, the number `number` of its part."""
    unseen = case.part == "elastix" or (case.part == "breathing" and number >= LEARNED)
    return METHODS + (STARTS + ABLATION if number < ABLATED[case.part] else ()) + (WEIGHTED if unseen else ())


def text_of(name: str, part: str) -> str:
    """Return a method of one part as `parse_method` reads it."""
    if re.split("[:@?]", name)[0] not in NETWORKS:
        return name
    return f"{name}{'&' if '?' in name else '?'}voxel_size_mm={NETWORK_MM[part]}"


def out_of(options: argparse.Namespace, case: Case, name: str) -> Path:
    """Return the folder of one registration."""
    return folder_of(options.out / case.part / case.name.replace(" ", "_"), name)


def register(options: argparse.Namespace, cases: Sequence[Case]) -> None:
    """Register what is missing, method by method, so that all cases have the first ones early."""
    wanted = set(options.methods.split(",")) if options.methods else None
    numbers: dict[str, int] = {}
    plan = []
    for case in cases:
        number = numbers[case.part] = numbers.get(case.part, -1) + 1
        plan += [(place, case, name) for place, name in enumerate(methods_of(case, number))]
    for _, case, name in sorted(plan, key=lambda own: own[0]):
        if wanted and name not in wanted:
            continue
        began = time.process_time()
        runtime = Runtime(device=options.device, threads=options.threads, progress=False)
        if published(case, name):
            continue
        if name in WEIGHTED and not Path(FILE).is_file():
            print(f"{name}: its weights come from chest_weights.py", flush=True)
            continue
        try:
            record = register_landmarks(
                case.pair, out_of(options, case, name), parse_method(text_of(name, case.part)), runtime,
                affine=case.prealign or name == AFFINE,
            )  # fmt: skip
        except (InputError, ProgramError, ComputationError) as error:
            print(f"{case.part} {case.name}, {name}: {error}", flush=True)
            continue
        spent = time.process_time() - began
        print(f"{case.part} {case.name}, {name}: {record['landmarks']['mean']:.2f} mm ({spent:.0f} s)", flush=True)


def measures(options: argparse.Namespace, case: Case, name: str) -> list[dict[str, Any]]:
    """Return a row of numbers for every group of landmarks; none if the registration is not done."""
    if name == INITIAL:
        record, forward = initial_record(case.pair), Transform(())
    else:
        folder = out_of(options, case, name)
        if not (folder / "record.json").is_file():
            return published(case, name)
        record = read_json(folder / "record.json")
        method = parse_method(text_of(name, case.part), require_installed=False)
        runtime, affine = Runtime(device=options.device), case.prealign or name == AFFINE
        # Of a program that is not installed here, nobody can tell the version.
        if method.engine.available() is None and not is_done(record, case.pair, method, runtime, affine=affine):
            return published(case, name)
        forward = read_h5(folder / "forward_xfm.h5")
    found = landmark_errors(*case.pair.points, forward, load_image(case.pair.moving.image))
    common = {"part": case.part, "case": case.name, "method": SHORT.get(name, name)}
    spent = {
        "std_jacobian": record.get("std_jacobian"), "fold_percent": record.get("fold_percent"),
        "processor_seconds": record.get("seconds", {}).get("registration_processor"), "device": record.get("device"),
        "engine": record.get("engine"), "preset": record.get("preset"),
        "settings": json.dumps(record["settings"]) if "settings" in record else None,
        "weights_sha256": (record.get("weights") or {}).get("sha256"), **_digests(case.pair),
    }  # fmt: skip
    rows = []
    for group, numbers in case.groups.items():
        part = replace(found, errors=found.errors[numbers], snapped=found.snapped[numbers]).as_record()
        rows.append({**common, "points": group, **_plain(part), "snapped_mean": part["snapped"]["mean"], **spent})
    if case.everywhere is not None:
        left = landmark_errors(*case.everywhere, forward, load_image(case.pair.moving.image)).as_record()
        rows.append(
            # These points are voxels of the moving image: snapped, all errors below half a voxel would be zero.
            {**common, "points": "everywhere", **_plain(left), "snapped_mean": None, **spent}
        )
    return rows


def published(case: Case, name: str) -> list[dict[str, Any]]:
    """Return the rows of the published table that this method, as it is now, has for the images of a case."""
    path = DOCS / "results" / "chest_cases.tsv"
    if name == INITIAL or not path.is_file():
        return []
    table = read_cases(path)
    method = parse_method(text_of(name, case.part), require_installed=False)
    wanted = {"part": case.part, "case": case.name, "method": SHORT.get(name, name), **_digests(case.pair)}
    table = table[(table[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return [row.to_dict() for _, row in table.iterrows() if is_made_by(row, method)]


def _digests(pair: LandmarkPair) -> dict[str, str]:
    return {"fixed_digest": contents_digest(pair.fixed.image), "moving_digest": contents_digest(pair.moving.image)}


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def write_random_weights(path: Path) -> None:
    """Write weights of the package's architecture that were never trained."""
    if path.is_file():
        return
    network, conventions = load_network()
    assert isinstance(network, LapIRN)
    torch.manual_seed(0)
    fresh = LapIRN(network.config)
    save_network(fresh, path, dict(conventions))


def main() -> None:
    """Run the experiment."""
    options = read_options()
    options.out.mkdir(parents=True, exist_ok=True)
    os.chdir(options.out)
    write_random_weights(Path(RANDOM))
    cases: list[Case] = []
    for part in options.parts.split(","):
        (options.out / "data" / part).mkdir(parents=True, exist_ok=True)
        cases += PARTS[part](options.data, options.out / "data" / part, options.cases)
    if not options.tables_only:
        note_machine(options.out)
        register(options, cases)
    if options.register_only:
        return
    numbers: dict[str, int] = {}
    rows = []
    for case in cases:
        number = numbers[case.part] = numbers.get(case.part, -1) + 1
        for name in (INITIAL, *methods_of(case, number)):
            rows += measures(options, case, name)
    table = pd.DataFrame(rows)
    with atomic_path(options.out / "chest_cases.tsv") as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.4f", na_rep="n/a")
    write_page(options, cases, table)


def write_page(options: argparse.Namespace, cases: Sequence[Case], table: pd.DataFrame) -> None:
    """Write the page, the pictures and the cases beside it."""
    docs = DOCS if options.publish else options.out / "docs"
    results, images = docs / "results", docs / "images"
    for folder in (results, images):
        folder.mkdir(parents=True, exist_ok=True)
    draw_errors(table, list(PARTS), images / "chest_errors.png")
    overlay = _overlay(options, cases, table, images / "chest_overlay.png")
    parts = [
        "# The chest: landmarks brought together",
        "Written by `benchmarks/experiments/chest.py`. Registered on:",
        machines_of(DOCS / "results" / "chest.md", options.out),
        f"Written by nio_pydra {__version__}.",
        NOTES,
        f"Only the first {options.cases} of the cases of each part: the others were not asked for."
        if options.cases
        else "",
        "![Errors of the landmarks](../images/chest_errors.png)\n\nPoints: the mean error of every case that a method "
        "has done (for `liver`, in it). Bars: from the median of the landmarks to their 95th percentile, each the mean "
        "over cases.",
        overlay,
        *(_part(options, part, [case for case in cases if case.part == part], table) for part in PARTS),
    ]
    with atomic_path(results / "chest.md") as temporary:
        temporary.write_text("\n\n".join(part for part in parts if part) + "\n")
    shutil.copy(options.out / "chest_cases.tsv", results / "chest_cases.tsv")
    print(results / "chest.md")


def _part(options: argparse.Namespace, part: str, cases: Sequence[Case], table: pd.DataFrame) -> str:
    """Return the tables of one part: mean ± sd of every case and method, and means over the cases."""
    own = table[table["part"] == part]
    if own.empty:
        return ""
    plain = [INITIAL, *METHODS]
    text = [f"## {TITLES[part]}", PART_NOTES[part]]
    for group in own["points"].unique():
        rows = own[own["points"] == group].set_index(["case", "method"])
        methods = [SHORT.get(name, name) for name in plain]
        done = [name for name in methods if name in rows.index.get_level_values(1)]
        lines = [f"**{group.capitalize()}**, mm, mean ± standard deviation over the points of a case:", ""]
        lines += ["| Case | " + " | ".join(name.replace("_", "\\_") for name in done) + " |"]
        lines += ["| --- " * (len(done) + 1) + "|"]
        for case in cases:
            cells = [_cell(rows, case.name, name) for name in done]
            lines.append(f"| {case.name} | " + " | ".join(cells) + " |")
        text.append("\n".join([*lines, *_last_rows(rows, cases, done)]))
    text.append(_variants(own, cases, ABLATION_TITLE, ABLATION_ROWS))
    text.append(_variants(own, cases, WEIGHTS_TITLE, WEIGHTS_ROWS))
    done_by = own.groupby("method")["case"].nunique()
    wanted: dict[str, int] = {}
    for number, case in enumerate(cases):
        for name in methods_of(case, number):
            wanted[SHORT.get(name, name)] = wanted.get(SHORT.get(name, name), 0) + 1
    missing = [f"{name} ({count - done_by.get(name, 0)} of {count} cases)" for name, count in wanted.items()
               if done_by.get(name, 0) < count]  # fmt: skip
    if missing:
        text.append("Not run yet, or failed: " + ", ".join(missing).replace("_", "\\_") + ".")
    return "\n\n".join(own for own in text if own)


def _last_rows(rows: pd.DataFrame, cases: Sequence[Case], methods: Sequence[str]) -> list[str]:
    """Return the rows over cases: those that are done by all methods which have done at least half of them."""

    def done(name: str) -> list[str]:
        return [case.name for case in cases if (case.name, name) in rows.index]

    whole = [name for name in methods if 2 * len(done(name)) >= len(cases)]
    common = [case.name for case in cases if all(case.name in done(name) for name in whole)]
    learned = [case.name for case in cases[: CHOSEN[cases[0].part]]]
    summaries = [(*own, common) for own in (SUMMARIES if len(cases) > 1 else SUMMARIES[:-1])]
    if learned and (test := [case for case in common if case not in learned]):
        summaries.append((f"Mean, but for the first {len(learned)}", "mean", "mean", ".2f", test))
    lines = []
    for title, column, over, shown, over_cases in summaries:
        cells = []
        for name in methods:
            own = rows.loc[[(case, name) for case in (over_cases if name in whole else [])]]
            if column == "processor_seconds":
                own = own[own["device"] != "cuda"]
            value, fewer = own[column].astype(float).agg(over), name in whole and len(own) < len(over_cases)
            cells.append(f"{value:{shown}}" + (f" ({len(own)})" if fewer else "") if value == value else "–")
        lines.append(f"| **{title}** ({len(over_cases)}) | " + " | ".join(cells) + " |")
    return lines


def _cell(rows: pd.DataFrame, case: str, method: str) -> str:
    if (case, method) not in rows.index:
        return "–"
    found = rows.loc[(case, method)]
    return f"{found['mean']:.2f} ± {found['sd']:.2f}"


def _variants(own: pd.DataFrame, cases: Sequence[Case], title: str, methods: Sequence[str]) -> str:
    """Return a table of variants of methods, over the cases that one of them has done."""
    own = own[own["points"] == own["points"].iloc[0]].set_index(["case", "method"])
    variants = [SHORT[name] for name in methods if name in SHORT]
    names = [case.name for case in cases if any((case.name, name) in own.index for name in variants)]
    if not names:
        return ""
    heads = [*(["mean"] if len(names) > 1 else []), *(f"{name} | std\\|J\\|" for name in names)]
    lines = [title, "", "| Method | " + " | ".join(heads) + " |"]
    lines += ["| --- " * (" | ".join(heads).count(" | ") + 2) + "|"]
    for method in [SHORT.get(name, name) for name in methods]:
        cells = []
        if len(names) > 1:
            whole = all((name, method) in own.index for name in names)
            cells.append(f"{own.loc[[(name, method) for name in names], 'mean'].mean():.2f}" if whole else "–")
        for name in names:
            known = (name, method) in own.index
            cells += [_cell(own, name, method), f"{own.loc[(name, method), 'std_jacobian']:.3f}" if known else "–"]
        lines.append(f"| {method.replace('_', chr(92) + '_')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _overlay(options: argparse.Namespace, cases: Sequence[Case], table: pd.DataFrame, path: Path) -> str:
    """Draw the worst case as Figure 3 of the paper does; return the picture with its caption."""
    shown = ("lapirn:chest", "nio_m:chest")
    own = table[(table["part"] == "breathing") & (table["points"] == "landmarks")]
    done = own[own["method"] == shown[0]]
    done = done[done["case"].isin(own[own["method"] == shown[1]]["case"])]
    if done.empty:
        return ""
    worst = done.sort_values("mean")["case"].iloc[-1]
    case = next(own for own in cases if own.part == "breathing" and own.name == worst)
    files = [(name, out_of(options, case, name) / "warped.nii.gz") for name in shown]
    if all(file.is_file() for _, file in files):
        draw_overlay(case.pair, files, path)
    elif not options.publish or f"({worst})" not in (DOCS / "results" / "chest.md").read_text():
        return f"There is no picture of the worst case, {worst}: its images are not here."
    return (
        f"![The case with the largest error](../images/{path.name})\n\nAs Figure 3 of the paper: the fixed image in "
        f"red, the moving or warped one in green; grey where both agree. The case is the one with the largest error of "
        f"{shown[0]} among the simulated ones that both methods have done ({worst}); the slice is the coronal one with "
        "most lung."
    )


if __name__ == "__main__":
    main()
