"""How plugins are installed: every trap on the path is found, explained, and mended by what the finding says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from check_site import GOOD, add, found, one
from fake_install import FakeSite, write_distribution

from kdplug.host.check.check import check_plugins

INSTALL = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--upgrade"]
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "kdplug-drift"
version = "1"
[tool.hatch.build.targets.wheel]
only-include = ["kdplug_drift.py"]
"""
ENTRY = '[project.entry-points."kdplug.losses"]\nx = "kdplug_drift:f"\n'


def editable(site: FakeSite, folder: Path, declared: str) -> None:
    """``kdplug-a``, which offers the loss ``x``, as an editable project whose pyproject.toml now says ``declared``."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(f'[project]\nname = "kdplug-a"\n{declared}')
    record = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    site.add("kdplug-a", files={"kdplug_a.py": GOOD}, direct_url=record, losses={"x": "kdplug_a:f"})


def test_a_misspelt_group_is_found_though_kdplug_reads_none_of_it(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a")
    (info / "entry_points.txt").write_text("[kdplug.loss]\nx = kdplug_a:f\n[kdplug-tasks]\ny = kdplug_a:g\n")
    first, second = found(fake_site)
    assert "'kdplug-tasks' is not read, so y cannot be used. Did you mean 'kdplug.tasks'?" in first.what
    assert "'kdplug.loss' is not read, so x cannot be used. Did you mean 'kdplug.losses'?" in second.what


def test_groups_of_another_project_are_left_alone(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", files={"kdplug_a.py": GOOD}, losses={"x": "kdplug_a:f"})
    with (info / "entry_points.txt").open("a") as file:
        file.write("[kdplug_vision.backbones]\nresnet = kdplug_a:resnet\n")
    assert found(fake_site) == []


def test_a_line_that_is_no_entry_point_is_found(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", files={"kdplug_a.py": GOOD}, losses={"x": "kdplug_a:f"})
    with (info / "entry_points.txt").open("a") as file:
        file.write("y kdplug_a:f\n")
    assert "the line 'y kdplug_a:f' is not 'name = module:attribute'" in one(fake_site).what


def test_metadata_without_a_name_is_found(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", losses={"x": "kdplug_a:f"})
    (info / "METADATA").write_text("Metadata-Version: 2.1\n")
    finding = one(fake_site)
    assert (finding.check, finding.where) == ("nameless", str(info))
    assert finding.fix == "pip install --force-reinstall kdplug-a"


def test_metadata_that_is_no_text_is_found(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", losses={"x": "kdplug_a:f"})
    (info / "METADATA").write_bytes(b"\xff\xfe\x00")
    assert one(fake_site).check == "unreadable"


def test_an_empty_leftover_is_found_and_hides_nothing(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    (empty := fake_site.folder / "kdplug_a-0.9.dist-info").mkdir()
    finding = one(fake_site)
    assert (finding.check, finding.level, finding.fix) == ("leftover", "warning", f"rm -r {empty}")


def test_leftovers_of_others_are_none_of_our_business(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    (fake_site.folder / "requests-2.0.dist-info").mkdir()
    with fake_site.host():
        assert not [finding for finding in check_plugins() if "requests" in finding.where]


@pytest.mark.filterwarnings("ignore:kdplug-a is installed in 2 versions")
def test_two_versions_in_one_folder_are_found(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    old = fake_site.add("kdplug-a", "0.9", losses={"x": "kdplug_a:f"})
    finding = one(fake_site)
    assert (finding.check, finding.fix) == ("duplicate", f"rm -r {old}")
    assert "which one is used is undefined" in finding.what


def test_an_old_version_that_comes_before_a_new_one_is_found(fake_site, tmp_path, monkeypatch):
    fake_site.add("kdplug-a", "1.0", files={"kdplug_a.py": GOOD}, losses={"x": "kdplug_a:f"})
    write_distribution(tmp_path / "late", "kdplug-a", "2.0", {"losses": [("x", "kdplug_a:f"), ("y", "kdplug_a:f")]})
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "late")])
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("duplicate", "error")
    assert finding.what.endswith("(2.0) and shadows y")


def test_a_new_version_over_an_old_one_is_a_warning(fake_site, tmp_path, monkeypatch):
    fake_site.add("kdplug-a", "2.0", files={"kdplug_a.py": GOOD}, losses={"x": "kdplug_a:f"})
    write_distribution(tmp_path / "late", "kdplug-a", "1.0", {"losses": {"x": "kdplug_a:f"}})
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "late")])
    assert one(fake_site).level == "warning"


def test_a_stale_egg_info_that_hides_an_entry_is_found(fake_site, tmp_path, monkeypatch):
    add(fake_site, GOOD)
    egg = tmp_path / "checkout" / "kdplug_a.egg-info"
    egg.mkdir(parents=True)
    (egg / "PKG-INFO").write_text("Name: kdplug-a\nVersion: 0.5\n")
    (egg / "entry_points.txt").write_text("[kdplug.losses]\nold = kdplug_a:f\n")
    monkeypatch.syspath_prepend(str(egg.parent))
    finding = one(fake_site)
    assert (finding.check, finding.level, finding.fix) == ("stale-egg-info", "error", f"rm -r {egg}")
    assert finding.what.endswith("and shadows x")


def test_an_egg_info_without_entries_hides_nothing_and_is_a_warning(fake_site, tmp_path, monkeypatch):
    add(fake_site, GOOD)
    egg = tmp_path / "checkout" / "kdplug_a.egg-info"
    egg.mkdir(parents=True)
    (egg / "PKG-INFO").write_text("Name: kdplug-a\nVersion: 0.5\n")
    monkeypatch.syspath_prepend(str(egg.parent))
    finding = one(fake_site)
    assert (finding.check, finding.level, finding.fix) == ("stale-egg-info", "warning", f"rm -r {egg}")
    assert "kdplug ignores it" in finding.what


def test_an_egg_info_that_says_the_same_is_in_order(fake_site, tmp_path, monkeypatch):
    add(fake_site, GOOD)
    egg = tmp_path / "checkout" / "kdplug_a.egg-info"
    egg.mkdir(parents=True)
    (egg / "PKG-INFO").write_text("Name: kdplug-a\nVersion: 1.0\n")
    (egg / "entry_points.txt").write_text("[kdplug.losses]\nx = kdplug_a:f\n")
    monkeypatch.syspath_prepend(str(egg.parent))
    assert found(fake_site) == []


DRIFTS = {
    '[project.entry-points."kdplug.losses"]\nx = "kdplug_a:f"\ny = "kdplug_a:g"\n': "y (kdplug.losses) is not installed",
    "": "x (kdplug.losses) is installed but no longer declared",
    '[project.entry-points."kdplug.losses"]\nx = "kdplug_a:g"\n': "x (kdplug.losses) is installed as kdplug_a:f",
}


@pytest.mark.parametrize("declared", DRIFTS)
def test_an_editable_project_that_has_changed_is_installed_again(fake_site, tmp_path, declared):
    editable(fake_site, tmp_path / "project", declared)
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("drifted", "error")
    assert DRIFTS[declared] in finding.what
    assert finding.fix == f"pip install -e {tmp_path / 'project'}"


def test_an_editable_project_that_says_the_same_is_in_order(fake_site, tmp_path):
    editable(fake_site, tmp_path / "project", '[project.entry-points."kdplug.losses"]\nx = "kdplug_a : f"\n')
    assert found(fake_site) == []


def test_an_editable_project_that_computes_its_entry_points_is_believed(fake_site, tmp_path):
    editable(fake_site, tmp_path / "project", 'dynamic = ["entry-points"]\n')
    assert found(fake_site) == []


def test_an_editable_project_that_offered_nothing_before_is_found(fake_site, tmp_path):
    editable(fake_site, tmp_path / "project", '[project.entry-points."kdplug.losses"]\nx = "kdplug_a:f"\n')
    (fake_site.folder / "kdplug_a-1.0.dist-info" / "entry_points.txt").unlink()
    assert one(fake_site).check == "drifted"


def test_an_editable_project_that_is_gone_is_found(fake_site, tmp_path):
    editable(fake_site, tmp_path / "project", "")
    (tmp_path / "project" / "pyproject.toml").unlink()
    (tmp_path / "project").rmdir()
    assert "project-gone" in [finding.check for finding in found(fake_site)]


def test_a_package_that_offers_nothing_is_an_error_that_names_what_to_add(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a")
    assert one(fake_site).check == "offers-nothing"


def test_the_command_that_a_finding_gives_mends_an_editable_install(tmp_path):
    project, site = tmp_path / "kdplug-drift", tmp_path / "site"
    project.mkdir()
    (project / "kdplug_drift.py").write_text(GOOD)
    install = [*INSTALL, "--target", str(site), "-e", str(project)]
    code = """
        import sys
        from kdplug.host.check.check import check_plugins
        print([finding.check for finding in check_plugins('kdplug-drift')])
    """
    for declared, before, after in ((PROJECT, None, "offers-nothing"), (PROJECT + ENTRY, "drifted", "")):
        (project / "pyproject.toml").write_text(declared)
        if before:
            assert FakeSite(site).prints(code) == f"['{before}']"
        subprocess.run(install, check=True, capture_output=True)
        assert FakeSite(site).prints(code, PYTHONPATH=f"{site}{os.pathsep}{project}") == (
            f"['{after}']" if after else "[]"
        )
