"""Which code this is: the version names the commit, and the digest changes with the code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nio_pydra
from nio_pydra.version import RELEASE, source_digest

PACKAGE = Path(nio_pydra.__file__).parent
SETUP = "[metadata]\nname = nio-pydra\n"
SAY = "import nio_pydra.version as v; print(v.version(), v.source_digest())"


def git(root: Path, *words: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    # As in the package: a hook that runs these tests says which repository is its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *identity, "-C", str(root), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def said(root: Path, **environment: str) -> tuple[str, str]:
    """Version and digest of the copy in a folder, as a process of its own finds them."""
    command = [sys.executable, "-c", SAY]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root), **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    version, digest = done.stdout.split()
    return version, digest


@pytest.fixture
def copy(tmp_path):
    """A copy of the two files that it takes, without git."""
    root = tmp_path / "copy"
    (root / "nio_pydra").mkdir(parents=True)
    for name in ("__init__.py", "version.py"):
        shutil.copy(PACKAGE / name, root / "nio_pydra")
    return root


@pytest.fixture
def checkout(copy):
    """The copy as a git checkout of this project; its commit."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (copy / "setup.cfg").write_text(SETUP)
    (copy / ".gitignore").write_text("__pycache__/\n")
    git(copy, "init", "-q")
    return copy, commit(copy)


def commit(root: Path) -> str:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "a state", "--allow-empty")
    return git(root, "rev-parse", "HEAD")


def test_a_clean_checkout_has_its_commit_in_the_version_and_follows_it(checkout):
    root, first = checkout
    version, digest = said(root)
    assert version == f"{RELEASE}+g{first[:10]}"
    (root / "README").write_text("documents are not code\n")
    assert said(root) == (version, digest)
    second = commit(root)
    assert said(root) == (f"{RELEASE}+g{second[:10]}", digest)


@pytest.mark.parametrize("name", ["version.py", "new.py"])
def test_a_tree_with_changes_has_another_version_and_digest_for_every_state(checkout, name):
    root, head = checkout
    found = [said(root)]
    for number in range(2):
        with (root / "nio_pydra" / name).open("a") as file:
            file.write(f"# change {number}\n")
        found.append(said(root))
    assert len({version for version, _ in found}) == len({digest for _, digest in found}) == 3
    for version, digest in found[1:]:
        assert version == f"{RELEASE}+g{head[:10]}.d{digest[:10]}"


def test_a_copy_without_git_is_told_by_its_digest(copy):
    version, digest = said(copy)
    assert version == f"{RELEASE}+d{digest[:10]}"
    (copy / "nio_pydra/more.py").write_text("")
    again, other = said(copy)
    assert again != version and other != digest


def test_the_repository_of_another_project_around_the_package_is_not_taken_for_ours(checkout):
    root, _ = checkout
    (root / "setup.cfg").write_text("[metadata]\nname = another\n")
    commit(root)
    assert "+d" in said(root)[0]
    inside = root / "env/site-packages"
    shutil.copytree(root / "nio_pydra", inside / "nio_pydra")
    assert "+d" in said(inside)[0]


@pytest.mark.parametrize("reason", ["absent", "refuses", "no commit"])
def test_a_checkout_that_git_says_nothing_about_is_told_by_its_digest(checkout, tmp_path, reason):
    root, _ = checkout
    programs = tmp_path / "bin"
    programs.mkdir()
    environment = {"PATH": str(programs)}
    if reason == "refuses":  # as it does where another user owns the files
        (programs / "git").write_text("#!/bin/sh\necho fatal: dubious ownership >&2\nexit 128\n")
        (programs / "git").chmod(0o755)
    if reason == "no commit":
        shutil.rmtree(root / ".git")
        git(root, "init", "-q")
        environment = {}
    version, digest = said(root, **environment)
    assert version == f"{RELEASE}+d{digest[:10]}"


def test_variables_of_a_hook_do_not_lead_to_another_repository(checkout, tmp_path):
    root, head = checkout
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    commit(other)
    version, _ = said(root, GIT_DIR=str(other / ".git"), GIT_WORK_TREE=str(other))
    assert version == f"{RELEASE}+g{head[:10]}"


@pytest.mark.parametrize("place", ["PKG-INFO", "nio_pydra-9.dist-info/METADATA"])
def test_an_installed_or_packed_copy_has_the_version_noted_beside_it(copy, place):
    (copy / place).parent.mkdir(exist_ok=True)
    (copy / place).write_text("Metadata-Version: 2.4\nName: another\nVersion: 3\n")
    assert "+d" in said(copy)[0]
    (copy / place).write_text("Metadata-Version: 2.4\nName: nio-pydra\nVersion: 9+gabc\n\nVersion: 1\n")
    assert said(copy)[0] == "9+gabc"


def test_the_package_itself_says_a_version_of_this_release():
    which = "(g[0-9a-f]{10}(.d[0-9a-f]{10})?|d[0-9a-f]{10})"
    assert re.fullmatch(rf"{re.escape(RELEASE)}\+{which}", nio_pydra.__version__)
    assert re.fullmatch("[0-9a-f]{64}", source_digest())
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        nio_pydra.nonsense  # noqa: B018
