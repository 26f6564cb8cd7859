"""The distributions of this repository agree with one another."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import kdplug

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))]
PROJECTS = [tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in FILES]
PLUGINS = PROJECTS[1:]


def named(project: dict[str, object]) -> str:
    return str(project["name"])


@pytest.mark.parametrize("project", PROJECTS, ids=named)
def test_all_versions_are_the_one_in_the_package(project):
    assert project["version"] == kdplug.__version__


def test_the_changelog_opens_with_this_version():
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line[:3] == "## "]
    assert headings[0].startswith(f"## [{kdplug.__version__}]")


@pytest.mark.parametrize("project", PROJECTS, ids=named)
def test_python_3_11_is_the_lowest(project):
    assert project["requires-python"] == ">=3.11"


@pytest.mark.parametrize("project", PROJECTS, ids=named)
def test_the_license_is_apache(project):
    assert project["license"] == "Apache-2.0"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_the_text_of_the_license_lies_beside_it(file):
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    assert project.get("license-files") == ["LICENSE"], 'write license-files = ["LICENSE"]'
    assert (file.parent / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("project", PLUGINS, ids=named)
def test_a_plugin_takes_this_kdplug_and_not_the_next_minor_one(project):
    kdplugs = [r for r in map(Requirement, project["dependencies"]) if r.name == "kdplug"]
    assert len(kdplugs) == 1
    assert kdplugs[0].specifier.contains(kdplug.__version__)
    assert not kdplugs[0].specifier.contains("0.2")


@pytest.mark.parametrize("project", PROJECTS, ids=named)
def test_the_pinned_torch_is_within_what_is_promised(project):
    torches = [r for r in map(Requirement, project["dependencies"]) if r.name == "torch"]
    assert all(r.specifier.contains("2.13.0") and r.specifier == SpecifierSet(">=2.6") for r in torches)


@pytest.mark.parametrize("project", PROJECTS, ids=named)
def test_nothing_depends_on_torchvision(project):
    extras = [r for group in project.get("optional-dependencies", {}).values() for r in group]
    assert not {Requirement(r).name for r in project["dependencies"] + extras} & {"torchvision", "timm"}
