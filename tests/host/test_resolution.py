"""What a name means, and that installing something never changes it."""

from __future__ import annotations

import re
import sys

import pytest
from fake_install import distribution
from host_strategy import installations
from hypothesis import given

import kdplug
from kdplug.errors import AmbiguousEntryError, EntryError, NotInstalledError, UnknownEntryError
from kdplug.host.active import isolated
from kdplug.host.host import PluginWarning
from kdplug.host.metadata import Distribution
from kdplug.host.name import fold, is_entry_name, split_qualified

PRESETS = distribution("kdplug-presets", "0.1.0", losses={"ce": "p:ce"})
FIRST = distribution("kdplug-a", losses={"mykd": "a:x"})
SECOND = distribution("kdplug-b", "2.0", losses={"MYKD": "b:x"})


def meanings(dists: list[Distribution], names: list[str]) -> dict[str, str | None]:
    with isolated(dists):
        return {name: _meaning(name) for name in names}


def _meaning(name: str) -> str | None:
    try:
        return kdplug.losses.entry(name).qualified
    except AmbiguousEntryError:
        return "ambiguous"
    except EntryError:
        return None


@given(installations(), installations())
def test_installing_more_adds_names_or_makes_them_ambiguous_and_never_changes_one(
    before: list[Distribution], more: list[Distribution]
) -> None:
    installed = {dist.name for dist in before}
    after = before + [dist for dist in more if dist.name not in installed]
    names = sorted({point.name for dist in after for point in dist.entry_points})
    old, new = meanings(before, names), meanings(after, names)
    for name in names:
        assert old[name] is None or new[name] in (old[name], "ambiguous")


@given(installations())
def test_a_qualified_name_always_works_and_always_means_the_same(dists: list[Distribution]) -> None:
    with isolated(dists):
        for entry in kdplug.losses.entries():
            assert kdplug.losses.entry(entry.qualified) is entry
            assert kdplug.losses.entry(entry.qualified.upper().replace("-", "_")) is entry


@given(installations())
def test_the_order_of_discovery_has_no_say(dists: list[Distribution]) -> None:
    names = [point.name for dist in dists for point in dist.entry_points]
    with isolated(dists):
        listed = [entry.qualified for entry in kdplug.losses.entries()]
    with isolated(reversed(dists)):
        assert [entry.qualified for entry in kdplug.losses.entries()] == listed
    assert meanings(dists, names) == meanings(dists[::-1], names)


@given(installations())
def test_a_registry_is_a_consistent_mapping(dists: list[Distribution]) -> None:
    with isolated(dists):
        names = kdplug.losses.names()
        assert names == sorted(names) == list(kdplug.losses)
        assert len(kdplug.losses) == len(names) == len({fold(name) for name in names})
        assert all(name in kdplug.losses for name in names)


@given(installations())
def test_the_status_of_an_entry_is_what_its_bare_name_does(dists: list[Distribution]) -> None:
    with isolated(dists):
        for entry in kdplug.losses.entries():
            expected = {entry.qualified: "ok", "ambiguous": "ambiguous"}.get(_meaning(entry.name) or "", "shadowed")
            assert kdplug.losses.status(entry) == expected


@pytest.mark.parametrize("name", ["mykd", "MYKD", "Mykd", "kdplug-a:mykd", "Kdplug_A:MYKD", "kdplug.a:mykd"])
def test_case_and_separators_make_no_difference(name: str) -> None:
    with isolated([FIRST]):
        assert name in kdplug.losses
        assert kdplug.losses.entry(name).qualified == "kdplug-a:mykd"


def test_hyphen_and_underscore_are_the_same_in_an_entry_name() -> None:
    with isolated([distribution("kdplug-a", losses={"my-loss_2": "a:x"})]):
        assert kdplug.losses.entry("my_loss-2").name == "my-loss_2"
        assert "my.loss.2" not in kdplug.losses


def test_first_party_comes_before_third_party() -> None:
    with isolated([PRESETS, distribution("a-first", losses={"ce": "x:y"})]):
        assert kdplug.losses.entry("ce").qualified == "kdplug-presets:ce"
        assert kdplug.losses.entry("a-first:ce").target == "x:y"


def test_a_first_party_name_never_means_a_third_party_entry_even_while_ours_is_not_installed() -> None:
    expected = "'ce' is not installed. It is part of kdplug-presets: pip install kdplug-presets. To use another one, write a:ce"
    with isolated([distribution("a", losses={"ce": "x:y"})]):
        with pytest.raises(NotInstalledError, match=f"^{re.escape(expected)}$"):
            kdplug.losses.entry("ce")
        assert kdplug.losses.status(kdplug.losses.entry("a:ce")) == "shadowed"


def test_only_the_names_that_are_known_to_be_first_party_have_that_rank() -> None:
    with (
        isolated([distribution("kdplug-presets", losses={"mykd": "p:mykd"}), FIRST]),
        pytest.raises(AmbiguousEntryError),
    ):
        kdplug.losses.entry("mykd")


def test_a_local_name_comes_before_all_with_a_notice() -> None:
    with isolated([PRESETS]):
        kdplug.losses.register("CE")(len)
        expected = "loss 'ce' means local:CE and not kdplug-presets:ce. Write the one you mean."
        with pytest.warns(PluginWarning) as caught:
            assert kdplug.losses["ce"] is len
        assert [str(warning.message) for warning in caught] == [expected]
        assert kdplug.losses.entry("kdplug-presets:ce").target == "p:ce"


def test_the_notice_of_a_shadowed_name_is_given_by_the_first_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with isolated([PRESETS]):
        kdplug.losses.register("ce")(len)
        assert kdplug.losses["ce"] is len


def test_a_local_name_that_hides_nothing_gives_no_notice() -> None:
    with isolated([PRESETS]):
        kdplug.losses.register("mine")(len)
        assert kdplug.losses["mine"] is kdplug.losses["local:mine"] is len


def test_two_third_parties_make_a_name_ambiguous() -> None:
    with isolated([SECOND, FIRST]), pytest.raises(AmbiguousEntryError, match="offered by 2 packages"):
        kdplug.losses.entry("mykd")


def test_an_ambiguous_name_is_in_the_registry() -> None:
    with isolated([FIRST, SECOND]):
        assert "mykd" in kdplug.losses
        assert kdplug.losses.names() == ["mykd"]


def test_the_kinds_do_not_see_each_other() -> None:
    with isolated([distribution("kdplug-a", losses={"x": "m:f"}, projections={"x": "m:g"})]):
        assert kdplug.losses.entry("x").target == "m:f"
        assert kdplug.projections.entry("x").target == "m:g"
        assert "x" not in kdplug.tasks


def test_get_gives_the_default_for_an_unknown_name() -> None:
    with isolated([FIRST]):
        assert kdplug.losses.get("nothing-like-it", 3) == 3


@pytest.mark.parametrize("name", [None, 1, ["mykd"], b"mykd"])
def test_what_is_no_string_is_in_no_registry(name: object) -> None:
    with isolated([FIRST]):
        assert name not in kdplug.losses


def test_an_isolated_set_of_plugins_ends_with_its_block() -> None:
    before = kdplug.losses.names()
    with isolated([FIRST]):
        with isolated([SECOND]):
            assert kdplug.losses.names() == ["MYKD"]
        assert kdplug.losses.names() == ["mykd"]
    assert kdplug.losses.names() == before


@pytest.mark.parametrize("name", ["a", "0", "my_L1_loss", "a.b-c_d", "Lp2"])
def test_entry_names(name: str) -> None:
    assert is_entry_name(name)


@pytest.mark.parametrize("name", ["", "_a", "-a", ".a", "a b", "a:b", "a\n", "é", "ſ", "\u212a"])
def test_what_is_no_entry_name(name: str) -> None:
    assert not is_entry_name(name)


def test_registering_what_is_no_entry_name_or_cannot_be_called_is_an_error(no_plugins: object) -> None:
    with pytest.raises(kdplug.PluginError, match=r"^'a b' is not a valid loss name: use letters"):
        kdplug.losses.register("a b")(len)
    with pytest.raises(kdplug.PluginError, match=r"^'a': a loss must be callable, got 3$"):
        kdplug.losses.register("a")(3)


def test_a_qualified_name_splits_at_its_last_colon() -> None:
    assert split_qualified("mykd") == ("", "mykd")
    assert split_qualified("a:mykd") == ("a", "mykd")


def test_a_qualified_name_of_a_distribution_that_is_not_installed_is_no_typo_of_another_entry() -> None:
    logits = distribution("kdplug-logits", losses={"cat_kb": "l:x"})
    where = f"no distribution 'kdplug-camkit' is installed in {sys.prefix}"
    expected = (
        f"'kdplug-camkit:cat_kd' is unknown: {where}: pip install kdplug-camkit, or pip install -e . in its folder"
    )
    with isolated([logits, FIRST]), pytest.raises(NotInstalledError, match=f"^{re.escape(expected)}$"):
        kdplug.losses.entry("kdplug-camkit:cat_kd")


def test_a_typo_in_the_distribution_of_a_qualified_name_suggests_the_one_that_offers_the_entry() -> None:
    expected = f"'Kdplug_camkot:MYKD' is unknown: no distribution 'Kdplug_camkot' is installed in {sys.prefix}. Did you mean 'kdplug-camkit'?"
    dists = [distribution("kdplug-camkit", losses={"mykd": "c:x"}), distribution("kdplug-camkob", losses={"x": "d:x"})]
    with isolated(dists), pytest.raises(NotInstalledError, match=f"^{re.escape(expected)}$"):
        kdplug.losses.entry("Kdplug_camkot:MYKD")


@pytest.mark.parametrize(
    "name", ["local:mykt", "kdplug-a:mykt", "kdplug:mykt", "a b:mykt", "x:kdplug-a:mykt", "-x:mykt"]
)
def test_any_other_unknown_qualified_name_is_compared_with_the_entries(name: str) -> None:
    with isolated([FIRST]), pytest.raises(UnknownEntryError, match=r"^no loss named '.*'\. (Did you mean|To list all)"):
        kdplug.losses.entry(name)
