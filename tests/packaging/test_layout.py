"""The top level is fixed, and every dependency has its reason."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs/explanation/decisions"
TOP_LEVEL = {
    ".ci",
    ".github",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "docs",
    "examples",
    "kdplug",
    "plugins",
    "pyproject.toml",
    "tests",
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]
FOREIGN = [requirement for requirement in PROJECT["dependencies"] + EXTRAS if not requirement.startswith("kdplug")]


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


def test_the_top_level_holds_the_agreed_names_and_no_other():
    assert {path.split("/")[0] for path in tracked()} <= TOP_LEVEL


def test_no_file_is_named_for_leftovers():
    banned = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
    named_by_others = {"kdplug/integrations/textbrewer/utils.py"}  # scripts import it under this name
    found = {path for path in tracked() if path.endswith(".py") and banned & {*Path(path).with_suffix("").parts}}
    assert found <= named_by_others


@pytest.mark.parametrize("requirement", FOREIGN)
def test_every_runtime_dependency_has_its_decision_record(requirement):
    records = " ".join(record.read_text(encoding="utf-8").splitlines()[0] for record in DECISIONS.glob("*.md"))
    assert re.search(rf"\b{re.escape(name_of(requirement))}\b", records)


def test_tests_are_no_package():
    assert [path for path in tracked() if path.startswith("tests/") and path.endswith("__init__.py")] == []


def test_mypy_reads_every_package_that_says_it_is_typed():
    read = [folder for pattern in PYPROJECT["tool"]["mypy"]["files"] for folder in ROOT.glob(pattern)]
    typed = [ROOT / path for path in tracked() if path.endswith("py.typed")]
    assert len(typed) > 1
    assert [path for path in typed if not {*path.parents} & {*read}] == []
