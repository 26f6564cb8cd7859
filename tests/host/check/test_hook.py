"""Hooks, names and switches: what is never called, what a bare name does not mean, and what is left out."""

from __future__ import annotations

import re
import sys

import pytest
from check_site import GOOD, add, found, one
from fake_install import FakeSite

from kdplug.errors import PluginError
from kdplug.host.check.check import check_plugins


def test_two_packages_with_one_name_are_an_error_that_names_what_to_write(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    add(fake_site, GOOD, name="kdplug-b")
    finding = one(fake_site)
    assert (finding.check, finding.level) == ("ambiguous", "warning")
    assert "is also offered by kdplug-b:x" in finding.what
    assert finding.fix.startswith("write kdplug-a:x in configs")


def test_a_first_party_name_shadows_another(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": GOOD}, losses={"ce": "kdplug_a:f"})
    assert one(fake_site).check == "shadowed"


def test_a_hook_plugin_that_fails_is_found_with_its_line(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": "\n1 / 0"}, plugins={"hooks": "kdplug_a"})
    finding = one(fake_site)
    assert (finding.check, finding.where) == ("hook", f"{fake_site.folder / 'kdplug_a.py'}:2")
    assert "none of its hooks is called: ZeroDivisionError" in finding.what


def test_a_hook_that_does_not_exist_is_found(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": "def kdplug_step_ended(): ..."}, plugins={"hooks": "kdplug_a"})
    finding = one(fake_site)
    assert finding.check == "hook"
    assert "kdplug_step_ended, which is not a hook. Did you mean 'kdplug_step_end'?" in finding.what


def test_a_hook_that_asks_for_what_it_does_not_get_is_found(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": "def kdplug_step_end(reprot): ..."}, plugins={"hooks": "kdplug_a"})
    finding = one(fake_site)
    assert f"({fake_site.folder / 'kdplug_a.py'}:1) requests 'reprot', which the hook does not pass." in finding.what
    assert finding.what.endswith("Did you mean 'report'?")
    assert finding.fix == "correct the signature in kdplug_a"


def test_an_entry_that_a_hook_offers_is_checked_too(fake_site: FakeSite) -> None:
    source = "def f(student_logit): ...\ndef kdplug_losses():\n    return [('made', f)]"
    fake_site.add("kdplug-a", files={"kdplug_a.py": source}, plugins={"hooks": "kdplug_a"})
    assert one(fake_site).check == "signature"


@pytest.mark.filterwarnings("ignore::kdplug.host.host.PluginWarning")
def test_a_name_that_is_none_is_found(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": GOOD}, losses=[("my loss", "kdplug_a:f")])
    finding = one(fake_site)
    assert finding.check == "name"
    assert "'my loss', which is not a valid entry name" in finding.what


@pytest.mark.filterwarnings("ignore::kdplug.host.host.PluginWarning")
def test_a_switch_that_names_nobody_is_found(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    with fake_site.host(without=frozenset({"kdplug-aa"})):
        (finding,) = [finding for finding in check_plugins() if finding.check == "switch"]
    assert "names 'kdplug-aa', but no such plugin is installed. Did you mean 'kdplug-a'?" in finding.what


def test_a_plugin_that_is_left_out_is_not_imported(fake_site: FakeSite) -> None:
    add(fake_site, "1 / 0")
    finding = one(fake_site, without=frozenset({"kdplug-a"}), text="-kdplug-a")
    assert (finding.check, finding.level, finding.fix) == ("blocked", "warning", "unset KDPLUG_PLUGINS")


def test_a_plugin_for_another_kdplug_is_found(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", losses={"x": "kdplug_a:f"})
    (info / "METADATA").write_text("Name: kdplug-a\nVersion: 1.0\nRequires-Dist: kdplug>=99\n")
    assert (one(fake_site).check, one(fake_site).level) == ("incompatible", "error")


def test_what_is_not_installed_is_an_error_that_names_the_nearest(fake_site: FakeSite) -> None:
    add(fake_site, GOOD)
    with pytest.raises(PluginError, match=r"no distribution 'kdplug-aa' is installed.* 'kdplug-a'"):
        found(fake_site, "kdplug-aa")


def test_what_is_not_installed_and_resembles_nothing_is_an_error_that_names_the_environment(
    fake_site: FakeSite,
) -> None:
    fake_site.add("kdplug-logits", losses={"x": "kdplug_a:f"})
    expected = f"no distribution 'kdplug-camkit' is installed in {sys.prefix}: pip install kdplug-camkit, or pip install -e . in"
    with pytest.raises(PluginError, match=f"^{re.escape(expected)} its folder$"):
        found(fake_site, "kdplug-camkit")
