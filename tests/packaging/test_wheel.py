"""A built wheel holds the package and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest

import kdplug

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "kdplug": (ROOT, ROOT / "kdplug"),
    **{
        folder.name: (folder, folder / "src" / folder.name.replace("-", "_"))
        for folder in sorted((ROOT / "plugins").iterdir())
        if (folder / "pyproject.toml").exists()
    },
}


def built(project: Path, kind: str, out: Path) -> Path:
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(project)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.iterdir())


@pytest.fixture(scope="module", params=PACKAGES)
def wheel(request, tmp_path_factory):
    project, package = PACKAGES[request.param]
    return package, ZipFile(built(project, "wheel", tmp_path_factory.mktemp("wheel")))


@pytest.mark.parametrize("name", PACKAGES)
def test_an_sdist_builds_the_same_wheel_where_nothing_else_lies(name, tmp_path):
    """The version is in a file of the checkout that an sdist of a plugin does not hold."""
    project, package = PACKAGES[name]
    with tarfile.open(built(project, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "alone", filter="data")
    (alone,) = (tmp_path / "alone").iterdir()
    assert not (alone / "../../kdplug").exists()
    wheel = ZipFile(built(alone, "wheel", tmp_path / "wheel"))
    assert Path(wheel.filename).name == f"{package.name}-{kdplug.__version__}-py3-none-any.whl"
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == source_files(package)


def source_files(package: Path) -> set[str]:
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package.parent).as_posix() for path in files}


def test_the_wheel_holds_exactly_the_package(wheel):
    package, archive = wheel
    assert {name for name in archive.namelist() if ".dist-info/" not in name} == source_files(package)


@pytest.mark.parametrize("wheel", [name for name in PACKAGES if name != "kdplug"], indirect=True)
def test_the_wheel_of_a_plugin_offers_every_entry_that_its_project_declares(wheel):
    package, archive = wheel
    offered = ConfigParser(delimiters="=")
    offered.optionxform = str
    offered.read_string(archive.read(next(n for n in archive.namelist() if n.endswith("/entry_points.txt"))).decode())
    project = tomllib.loads((PACKAGES[package.name.replace("_", "-")][0] / "pyproject.toml").read_text())["project"]
    assert {group: dict(offered[group]) for group in offered.sections()} == project["entry-points"]


def test_the_wheel_says_that_it_is_typed(wheel):
    package, archive = wheel
    assert f"{package.name}/py.typed" in archive.namelist()


def test_the_wheel_is_for_every_platform(wheel):
    assert wheel[1].filename.endswith("-py3-none-any.whl")


def test_the_wheel_names_its_license_and_python(wheel):
    archive = wheel[1]
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))).decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


def test_the_wheel_brings_the_text_of_its_license(wheel):
    assert "licenses/LICENSE" in {name.split(".dist-info/")[-1] for name in wheel[1].namelist()}


def test_the_root_wheel_brings_the_command(tmp_path):
    archive = ZipFile(built(ROOT, "wheel", tmp_path))
    assert (
        "kdplug = kdplug.cli.app:main"
        in archive.read(f"kdplug-{kdplug.__version__}.dist-info/entry_points.txt").decode()
    )


def test_the_root_sdist_holds_neither_plugins_nor_tests(tmp_path):
    with tarfile.open(built(ROOT, "sdist", tmp_path)) as archive:
        inside = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert inside == {"kdplug", "README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
