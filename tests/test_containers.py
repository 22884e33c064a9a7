"""The recipes of containers: linted, and what they copy and start exists."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile"
APPTAINER = ROOT / "apptainer.def"
SECTIONS = {"arguments", "files", "post", "environment", "runscript", "test", "labels"}


def sections() -> dict[str, list[str]]:
    """Return the lines of each section of the Apptainer recipe; those of its head under an empty name."""
    found, name = {"": []}, ""
    for line in APPTAINER.read_text().splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            assert name not in found, f"%{name} is there twice"
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def names(text: str) -> set[str]:
    """Return the extras that a recipe installs."""
    return set(re.search(r'"\.\[([\w,]+)\]"', text)[1].split(","))


def test_the_dockerfile_has_no_fault_that_hadolint_knows():
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_apptainer_recipe_can_be_read():
    found = sections()
    assert set(found) == {"", *SECTIONS}
    assert dict(line.split(": ") for line in found[""])["Bootstrap"] == "docker"
    base = re.search(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)[1]
    assert f"From: {base}" in found[""]
    arguments = dict(line.split("=", 1) for line in found["arguments"])
    assert set(re.findall(r"\{\{ (\w+) \}\}", APPTAINER.read_text())) == set(arguments)
    for other in (DOCKERFILE, ROOT / "Makefile"):
        assert arguments["TORCH_INDEX"] in other.read_text(), other


@pytest.mark.parametrize("section", ["post", "runscript", "test"])
def test_the_scripts_of_the_apptainer_recipe_are_shell(section):
    script = "\n".join(sections()[section]).replace("{{ TORCH_INDEX }}", "INDEX")
    done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_that_is_copied_and_started_exists():
    for line in sections()["files"]:
        source, target = line.split()
        assert (ROOT / source).exists() and target == f"/src/{source}", line
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for recipe in (DOCKERFILE, APPTAINER):
        text = recipe.read_text()
        assert "nio-pydra = " in setup["options.entry_points"]["console_scripts"] and "nio-pydra" in text
        assert names(text) <= set(setup["options.extras_require"]), recipe
