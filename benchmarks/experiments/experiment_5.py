"""Experiment 5: networks trained on images like the test's, on others, and on few; each with what is optimised on top.

The paper's three training regimes in small. Two networks are trained before, by `nio train`: `--prepare RUN` brings
their scans to one space in several processes at a time, and prints the commands.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from common import Comparison, cases_of_tables, oasis, publish, read_options, run, table

from nio_pydra.comparison.scope import folder_of
from nio_pydra.engines.contract import Runtime, ScanFiles
from nio_pydra.training.scans import prepare_scans

TRAIN = (
    "1000", "1001", "1002", "1006", "1007", "1008", "1009", "1010", "1011", "1012", "1013",
    "1014", "1015", "1017", "1036",
)  # fmt: skip
FEW = TRAIN[1:4]
#: Network: its weights in the text of a method, and what it was trained on.
REGIMES = {
    "like": ("@research.safetensors", "15 scans of the same dataset, sub-1000 among them"),
    "others": ("", "images generated from label maps; no scan"),
    "authors": ("@LapIRN_disp_fea7.pth", "OASIS, by LapIRN's authors"),
    "few": ("@few.safetensors", f"{len(FEW)} scans of the same dataset: {', '.join('sub-' + name for name in FEW)}"),
}
#: Column: engine of the methods that are put on top of each network.
ON_TOP = {"LapIRN": "lapirn", "IO": "io", "NIO": "nio", "NIO_m": "nio_m", "NIO_m fast": "nio_m:fast"}
#: Network to be trained: its scans, and the schedule of `nio train`.
TRAINED = {
    "research": (TRAIN, ("1:4000:1e-3:0", "2:1500:5e-4:48", "3:300:2e-4:64")),
    "few": (FEW, ("1:4000:1e-3:0", "2:1500:5e-4:48", "3:300:2e-4:64")),
}
NOTES = "Networks, by what they were trained on:\n\n" + "\n".join(
    f"- **{name}** (`{weights.removeprefix('@') or 'default.safetensors'}`): {data}"
    for name, (weights, data) in REGIMES.items()
)
NOTES += """

The regimes of the paper are `like`, `others` and `few`; the network of LapIRN's authors stands beside them.
`research.safetensors` was trained anew for these experiments: it is not the network of that name in
[the weights](weights.md)."""


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Return the comparison; what experiment 1 has done of it is taken from there."""
    methods = [f"{engine}{weights}" for weights, _ in REGIMES.values() for engine in ON_TOP.values()]
    title = "Experiment 5: three training regimes, eight test scans of OASIS to sub-1000"
    own = oasis(options.data, "experiment_5", title, ("affine", *methods))
    for method in own.methods:
        done, target = (folder_of(options.out / name, method) for name in ("experiment_1", own.name))
        if done.is_dir() and not target.exists():
            shutil.copytree(done, target)
    return [own]


def prepare(options: argparse.Namespace) -> None:
    """Bring the scans of both networks to one space, and print the commands that train them."""
    dataset, out = options.data / "oasis_malf", options.prepare
    for network, (names, stages) in TRAINED.items():
        participants = [name for name in names if name in (options.participants or names)]
        scans = [
            ScanFiles(dataset / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz", skull_stripped=True)
            for name in participants
        ]
        cache = out / network / "scans"
        jobs = [(number, [scans[0], scan], cache) for number, scan in enumerate(scans[1:], start=2)]
        with ProcessPoolExecutor(options.nprocs, mp_context=get_context("spawn")) as pool:
            list(pool.map(_prepare, jobs))
        text = f"the {len(scans)} scans of oasis_malf {', '.join(participants)} (CC BY-NC)"
        print(
            shlex.join(
                [
                    "nio", "train", "--bids", str(dataset), "--skull-stripped", "--held-out", "0",
                    *(word for stage in stages for word in ("--stage", stage)),
                    "--participant-label", *participants, "--out", str(out / network),
                    "--training-data", text, "--licence", "CC BY-NC 4.0, not to be distributed",
                ]
            )
        )  # fmt: skip


def _prepare(job: tuple[int, list[ScanFiles], Path]) -> None:
    """Prepare one scan in a folder of its own, and give it the name that it has in the list of all."""
    number, scans, cache = job
    if any(cache.glob(f"{number:05d}-*.npz")):
        return
    folder = cache.parent / f"scan{number}"
    first, own = prepare_scans(scans, folder, Runtime(device="cpu", threads=1, progress=False))
    cache.mkdir(parents=True, exist_ok=True)
    own.rename(cache / own.name.replace("00002", f"{number:05d}", 1))
    if number == 2:
        first.rename(cache / first.name)
    shutil.rmtree(folder)


def _grid(options: argparse.Namespace, own: Comparison, measure: str, title: str, digits: int) -> str:
    means = cases_of_tables(options, own).groupby("method")[measure].mean()
    rows = [
        (name, [float(means.get(f"{engine}{weights}", float("nan"))) for engine in ON_TOP.values()])
        for name, (weights, _) in REGIMES.items()
    ]
    return table(title, list(ON_TOP), rows, digits).replace("| Method |", "| Network |")


def main() -> int:
    """Run the experiment."""
    options = read_options(__doc__, prepare=True)
    if options.prepare is not None:
        prepare(options)
        return 0
    chosen = run(options, comparisons(options))
    if options.publish:
        own = "\n\n".join(
            [
                _grid(options, chosen[0], "dice_all", "Dice by network, all structures", 3),
                _grid(options, chosen[0], "std_jacobian", "Standard deviation of the Jacobian determinant", 3),
                _grid(options, chosen[0], "fold_percent_raw", "Folds before they are removed, %", 2),
            ]
        )
        publish(options, "experiment_5", chosen[0], NOTES, before=own)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
