"""Which code this is: a version for people, which names the commit, and a digest of the source for caches."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from functools import cache
from pathlib import Path

__all__ = ["RELEASE", "source_digest", "version"]

RELEASE = "0.2.0.dev0"
"""Release that this code is or will become; all that has to be edited, in the commit that is tagged and the next."""

PACKAGE = Path(__file__).parent
DIGITS = 10
"""Of a commit or a digest in a version."""


@cache
def version() -> str:
    """Return the version of this code.

    A git checkout is asked at run time, because what an editable installation has noted goes stale with the next
    commit. The tree's own changes to the package count, those elsewhere in the repository do not.

    Returns
    -------
    str
        In a git checkout ``<release>+g<commit>``, and ``<release>+g<commit>.d<digest>`` where the package differs from
        that commit. Of an installed or packed copy what was noted when it was built, which is one of those. Otherwise
        ``<release>+d<digest>``. The digest is the start of `source_digest`.
    """
    changed = f"d{source_digest()[:DIGITS]}"
    if (commit := _git_state(PACKAGE)) is not None:
        return f"{RELEASE}+g{commit[0][:DIGITS]}" + (f".{changed}" if commit[1] else "")
    return _noted_version(PACKAGE) or f"{RELEASE}+{changed}"


@cache
def source_digest() -> str:
    """Return the SHA-256 of the package's Python files and their names, in hexadecimal.

    Any change of the code changes it, committed or not, also one of an installed copy. So it is what keys of caches
    hold; the version would miss the last, and would change with every commit that touches documents only.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _git_state(package: Path) -> tuple[str, bool] | None:
    """Return the commit that a package's checkout is at, and whether the package differs from it.

    None where the package lies in no checkout of this project (but perhaps inside another one, as a site-packages
    folder may), or where git is absent or refuses.
    """
    root = package.parent
    try:
        if not (root / ".git").exists() or "name = nio-pydra\n" not in (root / "setup.cfg").read_text():
            return None
        # Variables of a hook that runs this would lead git to another repository.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--", package.name]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=10)
    except (OSError, UnicodeDecodeError, subprocess.TimeoutExpired):
        return None
    commit = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", done.stdout, re.MULTILINE)
    if done.returncode or commit is None:
        return None
    return commit[1], re.search(r"^[^#]", done.stdout, re.MULTILINE) is not None


def _noted_version(package: Path) -> str | None:
    """Return the version that was noted beside a package when it was installed or packed."""
    # Not importlib.metadata, which may find another installation, or what an editable one noted long ago.
    for path in (package.parent / "PKG-INFO", *package.parent.glob("nio_pydra-*.dist-info/METADATA")):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            continue
        found = re.search(r"^Version: (\S+)$", text, re.MULTILINE)
        if found and re.search(r"^Name: nio[-_]pydra$", text, re.MULTILINE):
            return found[1]
    return None
