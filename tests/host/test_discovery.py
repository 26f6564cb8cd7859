"""What ``import kdplug`` finds, and what it leaves alone."""

from __future__ import annotations

import pytest
from fake_install import FakeSite

import kdplug
from kdplug.errors import PluginError
from kdplug.host.active import isolated
from kdplug.host.host import PluginWarning
from kdplug.host.kind import KINDS
from kdplug.host.metadata import scan

HEAVY = "{'torch', 'pydantic', 'kdplug_presets', 'kdplug_tasks', 'accelerate', 'typer', 'rich'}"


def names_in(site: FakeSite) -> list[str]:
    return [dist.name for dist in scan([str(site.folder)])]


def test_importing_kdplug_imports_no_plugin_and_nothing_heavy(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", losses={"dkd": "kdplug_a:dkd"}, files={"kdplug_a.py": "raise SystemExit('imported')"})
    assert fake_site.prints(f"import kdplug, sys; print({HEAVY} & set(sys.modules), 'kdplug_a' in sys.modules)") == (
        "set() False"
    )


def test_the_registries_are_full_as_soon_as_kdplug_is_imported(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", losses={"dkd": "m:f"}, projections={"p": "m:f"}, tasks={"t": "m:f"})
    code = (
        "import kdplug as k; print('dkd' in k.losses, 'p' in k.projections, 't' in k.tasks, 'kdplug-a:dkd' in k.losses)"
    )
    assert fake_site.prints(code) == "True True True True"


def test_listing_and_membership_and_messages_import_nothing(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", losses={"dkd": "kdplug_a:dkd"}, files={"kdplug_a.py": "raise SystemExit('imported')"})
    code = f"""
        import kdplug, sys
        kdplug.losses.names(), len(kdplug.losses), list(kdplug.losses), repr(kdplug.losses), kdplug.losses.entries()
        kdplug.losses.check(["dkd", 1]), kdplug.losses.entry("kdplug-a:dkd").qualified
        try:
            kdplug.losses.entry("dkdd")
        except kdplug.EntryError as error:
            print(error)
        print({HEAVY} & set(sys.modules))
    """
    assert (
        fake_site.prints(code)
        == "no loss named 'dkdd'. Did you mean 'dkd' (kdplug-a 1.0)? To list all: kdplug plugins list --kind loss\nset()"
    )


@pytest.mark.parametrize("plural", KINDS)
def test_every_kind_takes_the_same_path_from_metadata_to_a_callable(fake_site: FakeSite, plural: str) -> None:
    fake_site.add("kdplug-a", files={"kdplug_a.py": "def f(): return 1"}, **{plural: {"one": "kdplug_a:f"}})
    with fake_site.host():
        registry = getattr(kdplug, plural)
        assert (registry.names(), len(registry), registry["one"]()) == (["one"], 1, 1)
        assert registry.entry("one").owner == "kdplug-a 1.0"


def test_the_import_path_may_lead_into_a_class_and_may_carry_extras(fake_site: FakeSite) -> None:
    source = "class Family:\n    @staticmethod\n    def member(): return 2\n"
    fake_site.add("kdplug-a", losses={"m": "kdplug_a : Family.member [extra]"}, files={"kdplug_a.py": source})
    with fake_site.host():
        assert kdplug.losses["m"]() == 2


def test_distributions_without_kdplug_entry_points_are_no_plugins(fake_site: FakeSite) -> None:
    fake_site.add("requests")
    (fake_site.add("click") / "entry_points.txt").write_text("[console_scripts]\nkdplug.x = a:b\n")
    assert names_in(fake_site) == []


def test_an_empty_leftover_dist_info_hides_nothing(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", "2.0", losses={"dkd": "m:f"})
    (fake_site.folder / "kdplug_a-1.0.dist-info").mkdir()
    (fake_site.folder / "kdplug-1.0.dist-info").mkdir()
    assert [(dist.name, dist.version) for dist in scan([str(fake_site.folder)])] == [("kdplug-a", "2.0")]
    assert fake_site.prints("import kdplug; print('dkd' in kdplug.losses)") == "True"


def test_a_stale_egg_info_earlier_on_the_path_hides_nothing(fake_site: FakeSite) -> None:
    stale = fake_site.folder / "old" / "kdplug_a.egg-info"
    stale.mkdir(parents=True)
    (stale / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: kdplug-a\nVersion: 0.1\n")
    fake_site.add("kdplug-a", "2.0", losses={"dkd": "m:f"})
    assert [dist.version for dist in scan([str(stale.parent), str(fake_site.folder)])] == ["2.0"]


def test_an_egg_info_with_entry_points_counts(fake_site: FakeSite) -> None:
    info = fake_site.folder / "kdplug_a.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: kdplug-a\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[kdplug.losses]\ndkd = m:f\n")
    assert names_in(fake_site) == ["kdplug-a"]


@pytest.mark.parametrize("text", ["", "Metadata-Version: 2.1\nVersion: 1.0\n", "\nName: kdplug-a\n"])
def test_metadata_that_names_nobody_is_passed_over(fake_site: FakeSite, text: str) -> None:
    (fake_site.add("kdplug-a", losses={"dkd": "m:f"}) / "METADATA").write_text(text)
    fake_site.add("kdplug-b", losses={"b": "m:f"})
    assert names_in(fake_site) == ["kdplug-b"]
    assert fake_site.prints("import kdplug; print('b' in kdplug.losses)") == "True"


def test_a_name_in_the_description_is_not_the_name(fake_site: FakeSite) -> None:
    info = fake_site.add("kdplug-a", losses={"dkd": "m:f"})
    (info / "METADATA").write_text("Name: kdplug-a\nVersion: 1.0\n\nName: kdplug-presets\nVersion: 9\n")
    assert [(dist.name, dist.version) for dist in scan([str(fake_site.folder)])] == [("kdplug-a", "1.0")]


def test_metadata_that_is_no_text_is_passed_over(fake_site: FakeSite) -> None:
    (fake_site.add("kdplug-a", losses={"dkd": "m:f"}) / "entry_points.txt").write_bytes(
        b"[kdplug.losses]\n\xff\xfe = m:f\n"
    )
    fake_site.add("kdplug-b", losses={"b": "m:f"})
    assert names_in(fake_site) == ["kdplug-b"]


def test_a_line_that_cannot_be_read_costs_only_itself(fake_site: FakeSite) -> None:
    text = (
        "dkd\n# a comment = x\n[console_scripts]\nx = y:z\n[ kdplug.losses ]\nno separator here\ndkd=m:f\n\n; c = d\n"
    )
    (fake_site.add("kdplug-a") / "entry_points.txt").write_text(text)
    with fake_site.host():
        assert kdplug.losses.names() == ["dkd"]


def test_of_one_distribution_found_twice_the_first_on_the_path_counts(fake_site: FakeSite) -> None:
    first, second = FakeSite(fake_site.folder / "1"), FakeSite(fake_site.folder / "2")
    first.add("kdplug-a", "1.0", losses={"dkd": "m:f"})
    second.add("Kdplug_A", "2.0", losses={"dkd": "m:f"})
    assert [dist.version for dist in scan([str(first.folder), str(second.folder)])] == ["1.0"]


def test_an_entry_whose_name_is_no_entry_name_is_left_out_and_said(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", losses={"two words": "m:f", "dkd": "m:f"})
    expected = (
        "kdplug-a 1.0 offers a loss named 'two words', which is not a valid entry name "
        "(letters, digits, '_', '-', '.'). This entry is ignored"
    )
    with pytest.warns(UserWarning, match="not a valid entry name") as caught, fake_site.host():
        assert kdplug.losses.names() == ["dkd"]
    assert [str(warning.message) for warning in caught] == [expected]


def test_only_the_first_process_of_a_run_prints_warnings(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", losses={"two words": "m:f"})
    said = {
        rank: fake_site.python("import kdplug; len(kdplug.losses)", **environment).stderr.count(
            "not a valid entry name"
        )
        for rank, environment in {
            "alone": {},
            "first": {"LOCAL_RANK": "0", "RANK": "0"},
            "second": {"LOCAL_RANK": "1", "RANK": "1"},
            "next node": {"LOCAL_RANK": "0", "RANK": "8"},
        }.items()
    }
    assert said == {"alone": 1, "first": 1, "second": 0, "next node": 0}


def test_of_two_entries_of_one_distribution_whose_names_differ_in_case_the_first_counts(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", losses=[("dkd", "m:f"), ("DKD", "m:g")])
    expected = "offers the loss 'DKD' twice: m:f and m:g. The first one is used"
    with pytest.warns(UserWarning, match=expected), fake_site.host():
        assert kdplug.losses.entry("kdplug-a:DKD").target == "m:f"


def test_the_same_entry_written_twice_is_one(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-a", losses=[("dkd", "m:f"), ("dkd", "m:f")])
    with fake_site.host():
        assert [entry.qualified for entry in kdplug.losses.entries()] == ["kdplug-a:dkd"]


@pytest.mark.parametrize("offers", [{"losses": {"dkd": "m:f"}}, {}], ids=["with entries", "without entries"])
@pytest.mark.parametrize("order", [("1.0", "2.0"), ("2.0", "1.0")])
def test_two_installed_versions_of_one_distribution_are_reported(
    fake_site: FakeSite, order: tuple[str, str], offers: dict[str, dict[str, str]]
) -> None:
    first, second = FakeSite(fake_site.folder / "1"), FakeSite(fake_site.folder / "2")
    first.add("kdplug-a", order[0], **offers)
    second.add("Kdplug_A", order[1], losses={"dkd": "m:f"})
    counts, other = (first, second) if offers else (second, first)
    versions = order if offers else order[::-1]
    with pytest.warns(PluginWarning) as caught, isolated(scan([str(first.folder), str(second.folder)])):
        pass
    name = "kdplug-a" if offers else "Kdplug_A"
    (message,) = [str(warning.message) for warning in caught]
    assert message == (
        f"{name} is installed in 2 versions: {versions[0]} in {counts.folder} is used, not {versions[1]} in {other.folder}. "
        f"Remove one of them: pip uninstall {name} removes the one that is used"
    )


def test_a_stale_egg_info_of_another_version_is_reported(fake_site: FakeSite) -> None:
    stale = fake_site.folder / "kdplug_a.egg-info"
    stale.mkdir()
    (stale / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: kdplug-a\nVersion: 0.1\n")
    fake_site.add("kdplug-a", "2.0", losses={"dkd": "m:f"})
    expected = r"kdplug-a is installed in 2 versions: 2.0 in .* is used, not 0.1 in .*"
    with pytest.warns(PluginWarning, match=expected), fake_site.host():
        pass


def test_one_version_found_twice_and_a_leftover_are_not_reported(fake_site: FakeSite) -> None:
    first, second = FakeSite(fake_site.folder / "1"), FakeSite(fake_site.folder / "2")
    for site in (first, second):
        site.add("kdplug-a", losses={"dkd": "m:f"})
    (second.folder / "kdplug_a-0.1.dist-info").mkdir()
    with isolated(scan([str(first.folder), str(first.folder), str(second.folder)])) as host:
        assert host.problems == []


def test_two_versions_are_an_error_when_strict(fake_site: FakeSite) -> None:
    for version in ("1.0", "2.0"):
        fake_site.add("kdplug-a", version, losses={"dkd": "m:f"})
    with pytest.raises(PluginError, match="is installed in 2 versions"), fake_site.host(strict=True):
        pass


def test_two_versions_of_a_plugin_that_is_left_out_are_nobodys_business(fake_site: FakeSite) -> None:
    for version in ("1.0", "2.0"):
        fake_site.add("kdplug-a", version, losses={"dkd": "m:f"})
    with fake_site.host(without=frozenset(["kdplug-a"])) as host:
        assert host.problems == []
