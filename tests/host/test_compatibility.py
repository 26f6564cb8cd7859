"""Plugins that were written for another kdplug: seen from their metadata, left out, and named with the fix."""

from __future__ import annotations

import pytest
from fake_install import FakeSite

import kdplug
from kdplug.contracts.version import VERSION
from kdplug.errors import NotInstalledError, PluginError
from kdplug.host.host import PluginWarning
from kdplug.host.manifest import header_line, ignored_records, plugin_records
from kdplug.host.metadata import unmet

NEEDS = f"needs kdplug>=9, but this is kdplug {VERSION}: pip install --upgrade kdplug kdplug-new"
EXPLODES = {"kdplug_new.py": "raise SystemExit('imported')"}


def add(site: FakeSite, *requires: str, name: str = "kdplug-new", **offers) -> None:
    info = site.add(name, files=EXPLODES, **(offers or {"losses": {"mykd": "kdplug_new:mykd"}}))
    head = (info / "METADATA").read_text().split("\n\n")[0]
    lines = "".join(f"Requires-Dist: {line}\n" for line in requires)
    (info / "METADATA").write_text(f"{head}\n{lines}\nRequires-Dist: kdplug<0.0.1 is only prose here\n")


def test_naming_an_entry_of_an_incompatible_plugin_says_what_it_needs_and_how_to_get_it(fake_site):
    add(fake_site, "torch", "kdplug>=9")
    with fake_site.host():
        assert "mykd" not in kdplug.losses
        for name in ("mykd", "kdplug-new:mykd"):
            with pytest.raises(NotInstalledError) as caught:
                kdplug.losses.load(name)
            assert str(caught.value) == f"{name!r} is offered by kdplug-new 1.0, which {NEEDS}"


def test_a_run_records_it_as_ignored_and_says_so(fake_site):
    add(fake_site, "kdplug>=9")
    with fake_site.host():
        assert plugin_records() == []
        assert ignored_records() == [{"dist": "kdplug-new", "version": "1.0", "reason": NEEDS}]
        assert header_line().endswith(" · plugins: none · ignored: kdplug-new")


def test_a_name_that_a_compatible_plugin_offers_too_means_that_one(fake_site):
    add(fake_site, "kdplug>=9")
    fake_site.add("kdplug-old", losses={"mykd": "kdplug_old:mykd"})
    with fake_site.host():
        assert kdplug.losses.entry("mykd").qualified == "kdplug-old:mykd"


def test_its_hooks_are_not_called_and_that_is_said_once_before_a_run(fake_site):
    add(fake_site, "kdplug>=9", plugins={"spy": "kdplug_new"})
    with fake_site.host() as host:
        with pytest.warns(
            PluginWarning, match=r"^the hooks of kdplug-new 1\.0 are not called: kdplug-new needs kdplug>=9"
        ):
            host.load_hooks()
        host.load_hooks()
    with fake_site.host(strict=True) as host, pytest.raises(PluginError):
        host.load_hooks()


def test_the_switch_comes_first(fake_site):
    add(fake_site, "kdplug>=9")
    with fake_site.host(without=frozenset({"kdplug-new"}), text="-kdplug-new") as host:
        assert (len(host.blocked), host.incompatible) == (1, [])
        assert ignored_records()[0]["reason"] == "KDPLUG_PLUGINS='-kdplug-new'"


@pytest.mark.parametrize(
    "requires",
    [
        (),
        ("torch>=2",),
        (f"kdplug=={VERSION}",),
        ("kdplug>=0.1,<0.2",),
        ("kdplug[report] (>=0.1)",),
        ("Kdplug>=0.1",),
        ("kdplug-presets>=9", "kdplug.more>=9", "kdplugin>=9"),
        ("kdplug>=9; extra == 'tests'",),
        ("kdplug>=9; python_version < '3'",),
        ("kdplug @ https://example.org/kdplug.whl",),
        ("kdplug>=what",),
    ],
)
def test_a_requirement_that_is_met_or_asks_for_nothing_lets_a_plugin_in(fake_site, requires):
    add(fake_site, *requires)
    with fake_site.host() as host:
        assert host.incompatible == []
        assert "mykd" in kdplug.losses


@pytest.mark.parametrize(
    "requires", ["kdplug<0.1", "KDPLUG (>=9)", "kdplug[report]>=9", "kdplug>=9; python_version > '3'"]
)
def test_a_requirement_that_is_not_met_keeps_it_out(fake_site, requires):
    add(fake_site, requires)
    with fake_site.host() as host:
        assert [dist.name for dist in host.incompatible] == ["kdplug-new"]


def test_a_version_before_the_release_counts_for_the_series_that_it_comes_after():
    assert unmet(["kdplug>=0.1,<0.2"], "0.1.5rc1") is None
    assert unmet(["kdplug>=0.1,<0.2"], "0.2.0") == "kdplug<0.2,>=0.1"


def test_the_version_names_the_plugin_api():
    assert (kdplug.PLUGIN_API, VERSION.rpartition(".")[0]) == (1, "0.1"), "raise both: see kdplug/contracts/version.py"
