"""The distributions of this repository agree with one another."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import kdplug
from kdplug.cli.scaffold import SCAFFOLDS

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))]
PROJECTS = [tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in FILES]
CORE, *PLUGINS = PROJECTS
VERSION_FILE = ROOT / "kdplug" / "contracts" / "version.py"


def named(project: dict[str, object]) -> str:
    return str(project["name"])


def requirements(project: dict[str, object], extra: str | None = None) -> dict[str, Requirement]:
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def next_breaking(version: str) -> str:
    """The first version in which plugins may stop working: the second number counts while the first is 0."""
    release = Version(version).release
    return f"{release[0] + 1}.0" if release[0] else f"0.{release[1] + 1}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_every_distribution_takes_its_version_from_the_one_file(file):
    document = tomllib.loads(file.read_text(encoding="utf-8"))
    assert document["project"]["dynamic"] == ["version"]
    assert (file.parent / document["tool"]["hatch"]["version"]["path"]).resolve() == VERSION_FILE
    assert VERSION_FILE.read_text(encoding="utf-8").count(f'VERSION = "{kdplug.__version__}"\n') == 1


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
def test_the_text_of_the_license_is_next_to_it(file):
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    assert project.get("license-files") == ["LICENSE"], 'write license-files = ["LICENSE"]'
    assert (file.parent / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("key", ["authors", "classifiers", "urls"])
@pytest.mark.parametrize("project", PROJECTS, ids=named)
def test_authors_classifiers_and_addresses_are_the_same_everywhere(project, key):
    assert project[key] == CORE[key]


@pytest.mark.parametrize("project", PROJECTS, ids=named)
def test_what_requires_another_distribution_takes_this_version_and_not_the_next_breaking_one(project):
    needs = [
        requirements(project),
        *(requirements(project, extra) for extra in project.get("optional-dependencies", {})),
    ]
    own = {named(other) for other in PROJECTS} - {named(project)}
    bounds = [need.specifier for group in needs for need in group.values() if need.name in own]
    assert bounds
    assert all(bound.contains(kdplug.__version__) for bound in bounds)
    assert not any(bound.contains(next_breaking(kdplug.__version__)) for bound in bounds)


@pytest.mark.parametrize("project", PLUGINS, ids=named)
def test_a_plugin_requires_kdplug_and_no_other_plugin(project):
    assert {name for name in requirements(project) if name.startswith("kdplug")} == {"kdplug"}


def test_kdplug_requires_the_plugins_of_its_default_config_and_of_the_readme():
    assert {name for name in requirements(CORE) if name.startswith("kdplug")} == {"kdplug-presets", "kdplug-logits"}


def test_the_extra_transformers_brings_the_tasks_on_transformers():
    assert requirements(CORE, "transformers")["kdplug-tasks"].extras == {"transformers"}
    assert "transformers" in requirements(CORE, "transformers")


def test_the_extra_all_is_every_extra_for_users():
    assert requirements(CORE, "all")["kdplug"].extras == CORE["optional-dependencies"].keys() - {"all", "testing"}


@pytest.mark.parametrize("project", PROJECTS, ids=named)
def test_the_pinned_torch_is_within_what_is_promised(project):
    torches = [r for r in map(Requirement, project["dependencies"]) if r.name == "torch"]
    assert all(r.specifier.contains("2.13.0") and r.specifier == SpecifierSet(">=2.13") for r in torches)


def test_a_new_plugin_promises_the_same_torch():
    assert {need for scaffold in SCAFFOLDS.values() for need in scaffold.needs if "torch" in need} == {"torch>=2.13"}


def test_the_workflow_runs_the_oldest_promised_torch_and_every_promised_python():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    pythons = [line.rsplit(" ", 1)[1] for line in CORE["classifiers"] if "Python :: 3." in line]
    listed = ", ".join(f'"{python}"' for python in pythons)
    assert f"python: [{listed}]" in workflow
    assert 'torch: ["2.13.0", newest]' in workflow


@pytest.mark.parametrize("project", PROJECTS, ids=named)
def test_nothing_depends_on_torchvision(project):
    extras = [r for group in project.get("optional-dependencies", {}).values() for r in group]
    assert not {Requirement(r).name for r in project["dependencies"] + extras} & {"torchvision", "timm"}
