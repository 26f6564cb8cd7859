"""Every trap that has bitten plugin authors is found, explained, and mended by what the finding says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_install import FakeSite, write_distribution

from kdplug.errors import PluginError
from kdplug.host.check import check_plugins
from kdplug.host.finding import Finding

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
GOOD = 'def f(student_logits, teacher_logits):\n    "A loss."\n'


def found(site: FakeSite, only: str = "kdplug-a", **switch: object) -> list[Finding]:
    with site.host(**switch):
        return check_plugins(only)


def one(site: FakeSite, only: str = "kdplug-a", **switch: object) -> Finding:
    (finding,) = found(site, only, **switch)
    return finding


def add(site: FakeSite, source: str, *, name: str = "kdplug-a", target: str = "f", group: str = "losses") -> str:
    """A plugin with one entry ``x``; gives the path of its module."""
    module = name.replace("-", "_")
    site.add(name, files={f"{module}.py": source}, **{group: {"x": f"{module}:{target}"}})
    return str(site.folder / f"{module}.py")


def editable(site: FakeSite, folder: Path, declared: str) -> None:
    """``kdplug-a``, which offers the loss ``x``, as an editable project whose pyproject.toml now says ``declared``."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(f'[project]\nname = "kdplug-a"\n{declared}')
    record = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    site.add("kdplug-a", files={"kdplug_a.py": GOOD}, direct_url=record, losses={"x": "kdplug_a:f"})


def test_the_first_party_plugins_are_in_order() -> None:
    assert check_plugins("kdplug-presets") == check_plugins("kdplug-tasks") == []


def test_a_good_plugin_has_no_finding(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    assert found(fake_site) == []


def test_a_missing_dependency_is_named_with_the_line_that_needs_it(fake_site: FakeSite) -> None:
    file = add(fake_site, "import math\nimport no_such.thing")
    finding = one(fake_site)
    assert (finding.check, finding.level, finding.where) == ("broken", "error", f"{file}:2")
    assert "ModuleNotFoundError: No module named 'no_such'" in finding.what
    assert finding.mend.startswith("install what holds the module 'no_such'")


def test_an_error_in_a_library_points_to_the_plugins_line(fake_site: FakeSite) -> None:
    file = add(fake_site, "import json\n\njson.loads('{')")
    finding = one(fake_site)
    assert finding.where == f"{file}:3"
    assert "python -c 'import kdplug_a'" in finding.mend


def test_a_syntax_error_points_to_its_line(fake_site: FakeSite) -> None:
    file = add(fake_site, "x = 1\ndef f(:")
    assert one(fake_site).where == f"{file}:2"


@pytest.mark.parametrize(("module", "target"), [("kdplug_a", "g"), ("kdplug_b", "f"), ("kdplug_a", "number")])
def test_a_target_that_leads_nowhere_is_corrected_in_the_entry_points(fake_site, module, target):
    fake_site.add("kdplug-a", files={"kdplug_a.py": f"number = 1\n{GOOD}"}, losses={"x": f"{module}:{target}"})
    finding = one(fake_site)
    assert finding.check == "broken"
    assert finding.mend.startswith(f"correct '{module}:{target}' in the entry points")


def test_one_broken_entry_does_not_hide_another(fake_site: FakeSite) -> None:
    files = {"kdplug_a.py": "1 / 0", "kdplug_a2.py": "raise SystemExit(3)"}
    fake_site.add("kdplug-a", files=files, losses={"x": "kdplug_a:f", "y": "kdplug_a2:f"})
    assert [finding.check for finding in found(fake_site)] == ["broken", "broken"]


def test_a_misspelt_input_is_found_with_its_place(fake_site: FakeSite) -> None:
    file = add(fake_site, "def f(student_logit):\n    'A loss.'")
    finding = one(fake_site)
    assert (finding.check, finding.where) == ("signature", f"{file}:1")
    assert "Did you mean 'student_logits'?" in finding.what


def test_inputs_that_no_place_gets_together_are_found(fake_site: FakeSite) -> None:
    add(fake_site, "def f(student_logits, student_features):\n    'A loss.'")
    finding = one(fake_site)
    assert finding.check == "inputs"
    assert "no place gets together" in finding.what


def test_a_default_outside_its_own_bounds_is_found(fake_site: FakeSite) -> None:
    source = """
        from typing import Annotated
        from pydantic import Field
        def f(student_logits, *, alpha: Annotated[float, Field(le=1)] = 2.0, beta: float):
            "A loss."
    """
    add(fake_site, source)
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("default", "error")
    assert finding.what == "the default of x's setting 'alpha' must be <= 1, got 2.0"


def test_a_setting_with_the_name_of_an_input_is_found(fake_site: FakeSite) -> None:
    add(fake_site, "def f(student_logits, *, temperature=1.0):\n    'A loss.'")
    assert "which is the name of an input" in one(fake_site).what


def test_a_class_that_cannot_be_made_from_its_defaults_is_found(fake_site: FakeSite) -> None:
    source = """
        from torch import nn
        class f(nn.Module):
            "A loss."
            def __init__(self):
                self.layer = nn.Linear(1, 1)
            def forward(self, student_logits, teacher_logits): ...
    """
    file = add(fake_site, source)
    finding = one(fake_site)
    assert (finding.check, finding.where) == ("unbuildable", f"{file}:6")


def test_a_module_without_an_init_is_in_order(fake_site: FakeSite) -> None:
    source = """
        from torch import nn
        class f(nn.Module):
            "A loss."
            def forward(self, student_logits, teacher_logits): ...
    """
    add(fake_site, source)
    assert found(fake_site) == []


def test_annotations_that_exist_for_type_checkers_only_are_in_order(fake_site: FakeSite) -> None:
    source = """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from nowhere import Thing
        def f(student_logits: Thing, *, alpha: float = 1.0) -> Thing:
            "A loss."
    """
    add(fake_site, source)
    assert found(fake_site) == []


def test_a_task_that_lacks_a_method_is_found(fake_site: FakeSite) -> None:
    add(fake_site, "class f:\n    'A task.'\n    metric = 'accuracy'", group="tasks")
    finding = one(fake_site)
    assert finding.check == "task"
    assert "it lacks about, build_teacher" in finding.what


def test_a_missing_docstring_is_a_warning(fake_site: FakeSite) -> None:
    add(fake_site, "def f(student_logits): ...")
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("docstring", "warning")


def test_two_packages_with_one_name_are_told_what_to_write(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    add(fake_site, GOOD, name="kdplug-b")
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("ambiguous", "warning")
    assert "is offered by kdplug-b:x too" in finding.what
    assert finding.mend.startswith("write kdplug-a:x in configs")


def test_a_first_party_name_shadows_another(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": GOOD}, losses={"ce": "kdplug_a:f"})
    assert one(fake_site).check == "shadowed"


def test_a_misspelt_group_is_found_though_kdplug_reads_none_of_it(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a")
    (info / "entry_points.txt").write_text("[kdplug.loss]\nx = kdplug_a:f\n[kdplug-tasks]\ny = kdplug_a:g\n")
    first, second = found(fake_site)
    assert "'kdplug-tasks' is not read, so y cannot be named. Did you mean 'kdplug.tasks'?" in first.what
    assert "'kdplug.loss' is not read, so x cannot be named. Did you mean 'kdplug.losses'?" in second.what


def test_groups_of_another_project_are_left_alone(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", files={"kdplug_a.py": GOOD}, losses={"x": "kdplug_a:f"})
    with (info / "entry_points.txt").open("a") as file:
        file.write("[kdplug_vision.backbones]\nresnet = kdplug_a:resnet\n")
    assert found(fake_site) == []


def test_a_line_that_is_no_entry_point_is_found(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", files={"kdplug_a.py": GOOD}, losses={"x": "kdplug_a:f"})
    with (info / "entry_points.txt").open("a") as file:
        file.write("y kdplug_a:f\n")
    assert "the line 'y kdplug_a:f' is no 'name = module:attribute'" in one(fake_site).what


def test_metadata_without_a_name_is_found(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", losses={"x": "kdplug_a:f"})
    (info / "METADATA").write_text("Metadata-Version: 2.1\n")
    finding = one(fake_site)
    assert (finding.check, finding.where) == ("nameless", str(info))
    assert finding.mend == "pip install --force-reinstall kdplug-a"


def test_metadata_that_is_no_text_is_found(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", losses={"x": "kdplug_a:f"})
    (info / "METADATA").write_bytes(b"\xff\xfe\x00")
    assert one(fake_site).check == "unreadable"


def test_an_empty_leftover_is_found_and_hides_nothing(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    (empty := fake_site.folder / "kdplug_a-0.9.dist-info").mkdir()
    finding = one(fake_site)
    assert (finding.check, finding.level, finding.mend) == ("leftover", "warning", f"rm -r {empty}")


def test_leftovers_of_others_are_none_of_our_business(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    (fake_site.folder / "requests-2.0.dist-info").mkdir()
    with fake_site.host():
        assert not [finding for finding in check_plugins() if "requests" in finding.where]


def test_two_versions_in_one_folder_are_found(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    old = fake_site.add("kdplug-a", "0.9", losses={"x": "kdplug_a:f"})
    finding = one(fake_site)
    assert (finding.check, finding.mend) == ("duplicate", f"rm -r {old}")
    assert "it is chance which counts" in finding.what


def test_an_old_version_that_stands_before_a_new_one_is_found(fake_site, tmp_path, monkeypatch):
    fake_site.add("kdplug-a", "1.0", files={"kdplug_a.py": GOOD}, losses={"x": "kdplug_a:f"})
    write_distribution(tmp_path / "late", "kdplug-a", "2.0", {"losses": [("x", "kdplug_a:f"), ("y", "kdplug_a:f")]})
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "late")])
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("duplicate", "error")
    assert finding.what.endswith("(2.0) and hides y")


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
    assert (finding.check, finding.level, finding.mend) == ("stale-egg-info", "error", f"rm -r {egg}")
    assert finding.what.endswith("and hides x")


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
    "": "x (kdplug.losses) is installed and no longer declared",
    '[project.entry-points."kdplug.losses"]\nx = "kdplug_a:g"\n': "x (kdplug.losses) is installed as kdplug_a:f",
}


@pytest.mark.parametrize("declared", DRIFTS)
def test_an_editable_project_that_has_changed_is_installed_again(fake_site, tmp_path, declared):
    editable(fake_site, tmp_path / "project", declared)
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("drifted", "error")
    assert DRIFTS[declared] in finding.what
    assert finding.mend == f"pip install -e {tmp_path / 'project'}"


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


def test_a_hook_plugin_that_fails_is_found_with_its_line(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": "\n1 / 0"}, plugins={"hooks": "kdplug_a"})
    finding = one(fake_site)
    assert (finding.check, finding.where) == ("hook", f"{fake_site.folder / 'kdplug_a.py'}:2")
    assert "none of its hooks is called: ZeroDivisionError" in finding.what


def test_a_hook_that_does_not_exist_is_found(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": "def kdplug_step_ended(): ..."}, plugins={"hooks": "kdplug_a"})
    finding = one(fake_site)
    assert finding.check == "hook"
    assert "kdplug_step_ended, which is no hook. Did you mean 'kdplug_step_end'?" in finding.what


def test_a_hook_that_asks_for_what_it_does_not_get_is_found(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": "def kdplug_step_end(reprot): ..."}, plugins={"hooks": "kdplug_a"})
    assert "reprot" in one(fake_site).what


def test_an_entry_that_a_hook_offers_is_checked_too(fake_site: FakeSite) -> None:
    source = "def f(student_logit): ...\ndef kdplug_losses():\n    return [('made', f)]"
    fake_site.add("kdplug-a", files={"kdplug_a.py": source}, plugins={"hooks": "kdplug_a"})
    assert one(fake_site).check == "signature"


@pytest.mark.filterwarnings("ignore::kdplug.host.host.PluginWarning")
def test_a_name_that_is_none_is_found(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": GOOD}, losses=[("my loss", "kdplug_a:f")])
    finding = one(fake_site)
    assert finding.check == "name"
    assert "'my loss', which is no entry name" in finding.what


@pytest.mark.filterwarnings("ignore::kdplug.host.host.PluginWarning")
def test_a_switch_that_names_nobody_is_found(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    with fake_site.host(without=frozenset({"kdplug-aa"})):
        (finding,) = [finding for finding in check_plugins() if finding.check == "switch"]
    assert "names 'kdplug-aa' but no such plugin is installed. Did you mean 'kdplug-a'?" in finding.what


def test_a_plugin_that_is_left_out_is_not_imported(fake_site: FakeSite) -> None:
    add(fake_site, "1 / 0")
    finding = one(fake_site, without=frozenset({"kdplug-a"}), text="-kdplug-a")
    assert (finding.check, finding.level, finding.mend) == ("blocked", "warning", "unset KDPLUG_PLUGINS")


def test_a_plugin_for_another_kdplug_is_found(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", losses={"x": "kdplug_a:f"})
    (info / "METADATA").write_text("Name: kdplug-a\nVersion: 1.0\nRequires-Dist: kdplug>=99\n")
    assert (one(fake_site).check, one(fake_site).level) == ("incompatible", "error")


def test_a_package_that_offers_nothing_is_told_what_to_add(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a")
    assert one(fake_site).check == "offers-nothing"


def test_what_is_not_installed_is_an_error_that_names_the_nearest(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    with pytest.raises(PluginError, match=r"no distribution 'kdplug-aa' is installed.* 'kdplug-a'"):
        found(fake_site, "kdplug-aa")


def test_a_strict_switch_ends_no_check(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": "1 / 0"}, plugins={"hooks": "kdplug_a"})
    assert one(fake_site, strict=True).check == "hook"


def test_what_plugins_register_and_print_as_they_are_imported_stays_away(fake_site, capsys):
    add(fake_site, f"import kdplug\nprint('hello')\nkdplug.losses.register('mine')(len)\n{GOOD}")
    with fake_site.host() as host:
        assert check_plugins("kdplug-a") == []
        assert "mine" not in host.entries["losses"]
    assert capsys.readouterr().out == ""


def test_the_command_that_a_finding_gives_mends_an_editable_install(tmp_path):
    project, site = tmp_path / "kdplug-drift", tmp_path / "site"
    project.mkdir()
    (project / "kdplug_drift.py").write_text(GOOD)
    install = [*INSTALL, "--target", str(site), "-e", str(project)]
    code = """
        import sys
        from kdplug.host.check import check_plugins
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
