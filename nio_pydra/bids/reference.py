"""Which scans stand for a participant or a session, as in fMRIPrep."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from nio_pydra.bids.atlas import Atlas
from nio_pydra.bids.inputs import Scan
from nio_pydra.errors import InputError

__all__ = ["Reference", "reference_scans", "refuse_other_references"]

log = logging.getLogger("nio_pydra")

Reference = Literal["first-lex", "sessionwise"]


def reference_scans(scans: Sequence[Scan], reference: Reference | None) -> list[Scan]:
    """Choose the scans whose space is that of a participant or of a session, and log how many others there are.

    fMRIPrep wants one pair of transforms for each of them. The choice is that of fMRIPrep: the first path in
    lexicographical order.

    Parameters
    ----------
    scans : sequence of Scan
        All scans.
    reference : {"first-lex", "sessionwise"} or None
        One scan for each participant, or one for each session. None: all scans.

    Returns
    -------
    list of Scan
        The chosen ones, in the order of `scans`. ``alone`` is whether a scan is the only one of its participant, or of
        its session with "sessionwise".
    """
    groups: dict[tuple[str, ...], list[Scan]] = {}
    for scan in sorted(scans, key=_path):
        groups.setdefault(_group(scan.entities, reference), []).append(scan)
    chosen = {members[0].name for members in groups.values()} if reference else {scan.name for scan in scans}
    if left := len(scans) - len(chosen):
        log.info("%d scans are left out: only the first of each %s is registered", left, _what(reference))
    return [
        replace(scan, alone=len(groups[_group(scan.entities, reference)]) == 1) for scan in scans if scan.name in chosen
    ]


def refuse_other_references(
    out_dir: Path, scans: Sequence[Scan], atlases: Sequence[Atlas], reference: Reference | None
) -> None:
    """Raise `InputError` if the output folder has transforms of other scans, because fMRIPrep would find two pairs."""
    if reference is None:
        return
    for scan in scans:
        for atlas in atlases:
            for path in sorted(out_dir.glob(f"sub-{scan.entities['subject']}/**/*_to-{atlas.label}_mode-image_xfm.h5")):
                name = path.name.split("_from-")[0]
                session = next((part[4:] for part in name.split("_") if part.startswith("ses-")), None)
                if name != scan.name and (reference == "first-lex" or session == scan.entities.get("session")):
                    raise InputError(
                        f"{path} is a transform of another scan of the {_what(reference)} than {scan.name}, and "
                        f"fMRIPrep would find both: delete the files of {name}, or give an output folder of its own."
                    )


def _group(entities: dict[str, str], reference: Reference | None) -> tuple[str, ...]:
    session = (entities.get("session", ""),) if reference == "sessionwise" else ()
    return (entities["subject"], *session)


def _path(scan: Scan) -> str:
    """Return the path that decides the order. A folder that could not be listed has only a name."""
    return scan.relative or scan.name.replace("_", "/")


def _what(reference: Reference | None) -> str:
    return "session" if reference == "sessionwise" else "participant"
