"""The version of the code, which names the commit, and the digest of its source, for keys of caches."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from functools import cache
from pathlib import Path

__all__ = ["RELEASE", "source_digest", "version"]

RELEASE = "0.2.0.dev0"
"""Release that this code is or will become. Edited in the commit that is tagged, and in the next one."""

PACKAGE = Path(__file__).parent
DIGITS = 10
"""Digits of a commit, or of a digest, in a version."""


@cache
def version() -> str:
    """Return the version of this code.

    The commit is read at run time: the version that an editable installation noted is out of date after the next
    commit. Uncommitted changes count inside the package only.

    Returns
    -------
    str
        In a git checkout ``<release>+g<commit>``, or ``<release>+g<commit>.d<digest>`` where the package differs from
        that commit. In an installed or packed copy, the version noted when it was built. Otherwise
        ``<release>+d<digest>``. The digest is the start of `source_digest`.
    """
    changed = f"d{source_digest()[:DIGITS]}"
    if (commit := _git_state(PACKAGE)) is not None:
        return f"{RELEASE}+g{commit[0][:DIGITS]}" + (f".{changed}" if commit[1] else "")
    return _noted_version(PACKAGE) or f"{RELEASE}+{changed}"


@cache
def source_digest() -> str:
    """Return the SHA-256 of the package's Python files, weights and figures with their names, in hexadecimal.

    Keys of caches hold it, because any change of the code changes it. The version would miss changes in an installed
    copy, and would change with commits that touch only documents.
    """
    digest = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.glob("weights/*.safetensors"), *PACKAGE.glob("report/*.svg")]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _git_state(package: Path) -> tuple[str, bool] | None:
    """Return the commit of a package's checkout, and whether the package differs from it.

    None where the package is not in a checkout of this project, or where git is absent or refuses. A site-packages
    folder may lie in a checkout of another project.
    """
    root = package.parent
    try:
        if not (root / ".git").exists() or "name = nio-pydra\n" not in (root / "setup.cfg").read_text():
            return None
        # Inside a git hook these variables point to the repository of the hook.
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
    # importlib.metadata may find another installation, or an old note of an editable one.
    for path in (package.parent / "PKG-INFO", *package.parent.glob("nio_pydra-*.dist-info/METADATA")):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            continue
        found = re.search(r"^Version: (\S+)$", text, re.MULTILINE)
        if found and re.search(r"^Name: nio[-_]pydra$", text, re.MULTILINE):
            return found[1]
    return None
