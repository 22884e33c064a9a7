"""What becomes of the scans of a run: why some failed, and how that is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan, scan_name
from nio_pydra.bids.outputs import engine_desc, sink
from nio_pydra.bids.products import PRODUCTS, Destination
from nio_pydra.bids.records import Failure, forget_failure
from nio_pydra.errors import InputError
from nio_pydra.report.participant import write_participant_pages
from nio_pydra.workflows.cache import failure_reason
from nio_pydra.workflows.crash import crash_report
from nio_pydra.workflows.pydra_private import stored_outputs
from nio_pydra.workflows.settings import DatasetSettings
from nio_pydra.workflows.slurm import Lost
from nio_pydra.workflows.subject import Subject

__all__ = ["Failures", "Outcome", "failure_of", "stored_products", "unreadable"]


@dataclass(frozen=True)
class Outcome:
    """Result of one scan with one atlas.

    Attributes
    ----------
    scan : Scan
        The scan.
    atlas : Atlas
        The atlas.
    reason, details : str
        Why it failed, in a sentence and in full. Empty after a success.
    started : bool
        Whether it was tried at all. False for those that were left after a failure.
    """

    scan: Scan
    atlas: Atlas
    reason: str = ""
    details: str = ""
    started: bool = True


class Failures:
    """Reasons why scans failed, stored in the output folder when it happens, for the group level and for pages.

    Called with a `Subject` task that has failed, it stores and returns the reason.

    Parameters
    ----------
    scans, atlases : sequence of Scan, sequence of Atlas
    settings : DatasetSettings
    out_dir : Path
        Folder for the derivatives.
    cache : Path
        pydra's cache folder.
    """

    def __init__(
        self, scans: Sequence[Scan], atlases: Sequence[Atlas], settings: DatasetSettings, out_dir: Path, cache: Path
    ) -> None:
        self.settings, self.out_dir, self.cache = settings, out_dir, cache
        self._pairs = {(scan_name(scan.entities), atlas.label): (scan, atlas) for scan in scans for atlas in atlases}
        self._stored: dict[tuple[str, str], tuple[str, str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out everything: pydra pickles this with each job, and no other process calls it."""
        return {}

    def __call__(self, task: Any) -> str:
        return self.store(task.destination, *failure_reason(self.cache, task))

    def store(self, to: dict[str, Any], reason: str, details: str) -> str:
        """Store why a scan failed, by the fields of its `Destination`, and write its page; return the reason."""
        # An error here would hide that of the scan; what could not be written is written at the end of the run.
        with suppress(InputError, OSError):
            self.note(Outcome(*self._pairs[scan_name(to["entities"]), to["atlas"]], reason, details))
            if self.settings.figures:
                whom = f"sub-{to['entities']['subject']}"
                write_participant_pages(self.out_dir, self.settings.profile, [whom], alone=True)
        return reason

    def note(self, outcome: Outcome) -> None:
        """Store why a scan failed, unless that is stored, or delete what an earlier run stored of one that is done."""
        scan, atlas, method = outcome.scan, outcome.atlas, self.settings.method
        pair = scan.name, atlas.label
        why, desc = (outcome.reason, outcome.details), engine_desc(method.name)
        if not outcome.started or self._stored.get(pair, ("", ""))[0] == outcome.reason != "":
            return
        if outcome.reason:
            failure = Failure(scan.name, atlas.space, desc, method.name, method.preset, outcome.reason)
            failure.write(self.out_dir, crash_report(scan, atlas, method, self.settings.runtime, why))
            self._stored[pair] = why
        else:
            forget_failure(self.out_dir, scan.name, atlas.space, desc)

    def known(self, scan: Scan, atlas: Atlas) -> tuple[str, str] | None:
        """Return why a scan failed in this run, in a sentence and in full, if that was stored."""
        return self._stored.get((scan.name, atlas.label))


def unreadable(scan: Scan) -> str:
    """Return a sentence about a file of a scan that cannot be read. Empty where all can."""
    for path in (scan.image, scan.lesion, scan.mask, scan.labels):
        # Reading uses the rights of the effective user, which only some systems can check.
        if path is not None and not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            if path.exists():
                return f"{path}: no permission to read it, change its permissions."
            return f"{path}: no such file; is it a link to content that was not fetched?"
    return ""


def failure_of(common: dict[str, Any], inputs: dict[str, Any], cache: Path, lost: Lost | None) -> tuple[str, str]:
    """Return why a registration failed, in a sentence and in full. Empty if it is done, and its files are written."""
    products = stored_products(common, inputs, cache)
    if products is None:
        if lost is not None and lost.killed:
            return lost.reason, lost.details
        reason, details = failure_reason(cache, Subject(**common, **inputs))
        return (lost.reason, lost.details) if lost is not None and not details else (reason, details)
    try:
        # Also for a scan found in the cache: its derivatives may have been deleted since.
        sink(products, Destination(**inputs["destination"]))
    except (InputError, OSError) as error:
        return str(error), ""
    return "", ""


def stored_products(common: dict[str, Any], inputs: dict[str, Any], cache: Path) -> dict[str, Path | None] | None:
    """Return the results of a scan from the cache. None where it is not done."""
    outputs = stored_outputs(Subject(**common, **inputs), cache)
    if outputs is None:
        return None
    files = {product.name: getattr(outputs, product.name) for product in PRODUCTS}
    return {name: None if file is None else Path(file) for name, file in files.items()}
