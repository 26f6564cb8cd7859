"""``KDPLUG_PLUGINS`` and ``KDPLUG_STRICT``."""

from __future__ import annotations

import re

import pytest
from fake_install import FakeSite, distribution

import kdplug
from kdplug.errors import NotInstalledError, PluginError
from kdplug.host.active import isolated
from kdplug.host.host import PluginWarning
from kdplug.host.manifest import ignored_records, plugin_records
from kdplug.host.plugin_filter import PluginFilter

DISTS = [
    distribution("kdplug-presets", "0.1.0", losses={"ce": "p:ce"}),
    distribution("kdplug-a", losses={"a": "m:f"}),
    distribution("Kdplug_B", losses={"b": "m:f"}),
]


def switch(monkeypatch: pytest.MonkeyPatch, plugins: str | None, strict: str = "") -> PluginFilter:
    monkeypatch.delenv("KDPLUG_PLUGINS", raising=False)
    if plugins is not None:
        monkeypatch.setenv("KDPLUG_PLUGINS", plugins)
    monkeypatch.setenv("KDPLUG_STRICT", strict)
    return PluginFilter.from_environment()


@pytest.mark.parametrize(
    ("plugins", "names"),
    [
        (None, ["a", "b", "ce"]),
        ("", ["ce"]),
        (" , ", ["ce"]),
        ("kdplug-a", ["a", "ce"]),
        ("kdplug-a,kdplug-b", ["a", "b", "ce"]),
        (" KDPLUG.A , ", ["a", "ce"]),
        ("-kdplug-a", ["b", "ce"]),
        ("-kdplug-a,-Kdplug_B", ["ce"]),
        ("- kdplug-a", ["b", "ce"]),
        ("-kdplug-presets", ["a", "b"]),
        ("-kdplug_presets,-kdplug-a", ["b"]),
    ],
)
def test_which_plugins_count(monkeypatch: pytest.MonkeyPatch, plugins: str | None, names: list[str]) -> None:
    with isolated(DISTS, switch(monkeypatch, plugins)):
        assert kdplug.losses.names() == names


@pytest.mark.parametrize("plugins", ["kdplug-a,-kdplug-b", "-kdplug-b,kdplug-a"])
def test_plugins_to_keep_and_plugins_to_leave_out_do_not_mix(monkeypatch: pytest.MonkeyPatch, plugins: str) -> None:
    told = (
        f"KDPLUG_PLUGINS={plugins!r} mixes plugins to keep with plugins to leave out. "
        "Write either 'a,b' (only these and first-party plugins) or '-a,-b' (all except these)."
    )
    with pytest.raises(PluginError, match=f"^{re.escape(told)}$"):
        switch(monkeypatch, plugins)


@pytest.mark.parametrize("plugins", ["kdplug-mylos", "-kdplug-mylos"])
def test_an_unknown_name_is_reported(monkeypatch: pytest.MonkeyPatch, plugins: str) -> None:
    told = "KDPLUG_PLUGINS names 'kdplug-mylos', but no such plugin is installed. Did you mean 'kdplug-myloss'?"
    with pytest.warns(PluginWarning, match=f"^{re.escape(told)}$"):  # noqa: SIM117
        with isolated([distribution("kdplug-myloss", losses={"m": "m:f"})], switch(monkeypatch, plugins)) as host:
            assert host.problems == [told]


def test_a_suggestion_is_spelled_as_listings_spell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.warns(PluginWarning, match="Did you mean 'Kdplug_B'"),
        isolated(DISTS, switch(monkeypatch, "kdplug-bb")),
    ):
        pass


@pytest.mark.parametrize(("strict", "on"), [("", False), ("0", False), ("1", True), ("yes", True)])
def test_when_kdplug_is_strict(monkeypatch: pytest.MonkeyPatch, strict: str, on: bool) -> None:
    assert switch(monkeypatch, None, strict).strict is on


def test_an_unknown_name_is_an_error_when_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match="names 'nobody'"), isolated(DISTS, switch(monkeypatch, "nobody", "1")):
        pass


def test_a_shadowed_name_is_an_error_when_strict() -> None:
    shadow = distribution("kdplug-a", losses={"ce": "m:f"})
    told = r"^loss 'ce' means kdplug-presets:ce and not kdplug-a:ce\. Write the one you mean\.$"
    with isolated([DISTS[0], shadow], PluginFilter(strict=True)):
        with pytest.raises(PluginError, match=told):
            kdplug.losses.entry("ce")
        assert kdplug.losses.entry("kdplug-a:ce").target == "m:f"
        assert kdplug.losses.entry("kdplug-presets:ce").target == "p:ce"


def test_an_entry_of_a_plugin_that_is_left_out_is_named_as_such() -> None:
    with isolated(DISTS, PluginFilter(without=frozenset({"kdplug-a"}), text="-kdplug-a")):
        told = r"^'(kdplug-a:)?a' is offered by kdplug-a 1\.0, which is disabled by KDPLUG_PLUGINS='-kdplug-a'$"
        for name in ("a", "kdplug-a:a"):
            with pytest.raises(NotInstalledError, match=told):
                kdplug.losses.entry(name)
        with pytest.raises(kdplug.EntryError, match=r"^'other:a' is unknown: no distribution 'other' is installed in "):
            kdplug.losses.entry("other:a")


def test_leaving_out_our_own_plugin_gives_its_names_to_nobody() -> None:
    shadow = distribution("kdplug-a", losses={"ce": "m:f"})
    told = "which is disabled by KDPLUG_PLUGINS='-kdplug-presets'. To use another one, write kdplug-a:ce"
    without = PluginFilter(without=frozenset({"kdplug-presets"}), text="-kdplug-presets")
    with isolated([DISTS[0], shadow], without), pytest.raises(NotInstalledError, match=told):
        kdplug.losses.entry("ce")


def test_the_records_of_a_run_list_who_was_left_out_and_why() -> None:
    with isolated(DISTS, PluginFilter(only=frozenset({"kdplug-a"}), text="kdplug-a")):
        assert [record["dist"] for record in plugin_records()] == ["kdplug-a", "kdplug-presets"]
        assert ignored_records() == [{"dist": "Kdplug_B", "version": "1.0", "reason": "KDPLUG_PLUGINS='kdplug-a'"}]


def test_the_switches_are_read_before_anything_is_registered(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", losses={"a": "m:f"}, plugins={"hooks": "kdplug_a"}, files={"kdplug_a.py": "1/0"})
    code = "import kdplug; kdplug.host.active.active().load_hooks(); print('a' in kdplug.losses)"
    assert fake_site.prints(code, KDPLUG_PLUGINS="-kdplug-a") == "False"
    assert fake_site.prints(code, KDPLUG_PLUGINS="") == "False"


def test_the_first_look_up_warns_of_an_unknown_name_once(fake_site: FakeSite) -> None:
    told = "PluginWarning: KDPLUG_PLUGINS names 'kdplug-mylos', but no such plugin is installed."
    imported = fake_site.python("import kdplug", KDPLUG_PLUGINS="kdplug-mylos")
    used = fake_site.python("import kdplug; len(kdplug.losses); len(kdplug.tasks)", KDPLUG_PLUGINS="kdplug-mylos")
    assert imported.stderr == ""
    assert used.stderr.count(told) == 1


def test_a_strict_first_look_up_with_an_unknown_name_fails(fake_site: FakeSite) -> None:
    done = fake_site.python("import kdplug; len(kdplug.losses)", KDPLUG_PLUGINS="kdplug-mylos", KDPLUG_STRICT="1")
    assert done.returncode == 1
    assert "PluginError: KDPLUG_PLUGINS names 'kdplug-mylos', but no such plugin is installed." in done.stderr
