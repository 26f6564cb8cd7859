"""Plugins of the group ``kdplug.plugins``: modules and objects with hooks."""

from __future__ import annotations

import pytest
from fake_install import FakeSite

import kdplug
from kdplug.errors import AmbiguousEntryError, PluginError, UnknownEntryError
from kdplug.host import hookspec
from kdplug.host.active import active
from kdplug.host.host import PluginWarning
from kdplug.host.kind import KINDS, Kind
from kdplug.host.manifest import ignored_records
from kdplug.host.registry import REGISTRIES

FAMILY = """
import kdplug

def lp(student_features, teacher_features): return "lp"

@kdplug.hookimpl
def kdplug_losses():
    for p in (1, 2):
        yield f"lp{p}", lp
    yield "lazy", "kdplug_family_lazy:f"

def kdplug_tasks():
    return [("corpus", lambda: "corpus")]
"""

LATE = """
def kdplug_losses(): return [("l", len)]
def kdplug_tasks(): return [("t", len)]
def kdplug_weight_schedulers(): return 1 / 0
"""

OBJECT = """
class Plugin:
    def kdplug_losses(self):
        return {"from_object": len}.items()

plugin = Plugin()
"""


def add_hooks(site: FakeSite, name: str, source: str, target: str = "", **files: str) -> None:
    module = name.replace("-", "_")
    modules = {f"{module}.py": source, **{f"{key}.py": text for key, text in files.items()}}
    site.add(name, plugins={"hooks": target or module}, files=modules)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.hook)
def test_the_hook_of_every_kind_offers_entries(fake_site: FakeSite, kind: Kind) -> None:
    add_hooks(fake_site, "kdplug-made", f"def {kind.hook}(): return [('made', len)]")
    with fake_site.host():
        entry = REGISTRIES[kind.plural].entry("made")
        assert (entry.qualified, entry.origin, entry.load()) == ("kdplug-made:made", "hook", len)


def test_a_module_with_marked_and_unmarked_hooks_is_asked_on_a_name_miss(fake_site: FakeSite) -> None:
    add_hooks(fake_site, "kdplug-family", FAMILY)
    with fake_site.host():
        assert kdplug.losses.names() == []
        assert kdplug.losses["lp1"](0, 0) == "lp"
        assert kdplug.losses.names() == ["lazy", "lp1", "lp2"]
        assert kdplug.tasks["corpus"]() == "corpus"
        entry = kdplug.losses.entry("lp2")
        assert (entry.qualified, entry.origin, entry.owner) == ("kdplug-family:lp2", "hook", "kdplug-family 1.0")


def test_an_object_may_hold_the_hooks(fake_site: FakeSite) -> None:
    add_hooks(fake_site, "kdplug-object", OBJECT, "kdplug_object:plugin")
    with fake_site.host():
        assert kdplug.losses["from_object"] is len


def test_what_a_hook_offers_by_path_is_imported_when_it_is_named(fake_site: FakeSite) -> None:
    add_hooks(fake_site, "kdplug-family", FAMILY, kdplug_family_lazy="def f(): return 'late'\nimported = True")
    code = """
        import sys, kdplug
        kdplug.host.active.active().load_hooks()
        print('lazy' in kdplug.losses, 'kdplug_family_lazy' in sys.modules, kdplug.losses['lazy']())
    """
    assert fake_site.prints(code) == "True False late"


def test_listing_and_checking_known_names_import_no_hook_plugin(fake_site: FakeSite) -> None:
    add_hooks(fake_site, "kdplug-loud", "raise SystemExit('imported')")
    fake_site.add("kdplug-a", losses={"dkd": "m:f"})
    code = """
        import kdplug
        kdplug.losses.names(), len(kdplug.losses), "x" in kdplug.losses, "x" in kdplug.MATCH_LOSS_MAP
        kdplug.losses.check("dkd"), kdplug.losses.check("kdplug-a:dkd")
    """
    assert fake_site.prints(code) == ""


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise ImportError('no apex')", "ImportError: no apex"),
        ("def kdplug_losses(): raise KeyError('x')", "KeyError: 'x'"),
        ("def kdplug_losses(): yield 'a', len; raise OSError('half way')", "OSError: half way"),
        ("def kdplug_losses(): return ['no pair']", "ValueError: too many values to unpack"),
        ("def kdplug_losses(): pass", "TypeError: 'NoneType' object is not iterable"),
        (LATE, "ZeroDivisionError: division by zero"),
        ("def kdplug_run_start(walk): ...", "SignatureError: kdplug_run_start ("),
    ],
)  # fmt: skip
def test_a_hook_plugin_that_raises_loses_all_of_its_entries_and_nobody_elses(
    fake_site: FakeSite, source: str, told: str
) -> None:
    add_hooks(fake_site, "kdplug-bad", source)
    add_hooks(fake_site, "kdplug-object", OBJECT, "kdplug_object:plugin")
    with fake_site.host() as host:
        with pytest.warns(PluginWarning, match="To run without this plugin, set KDPLUG_PLUGINS=-kdplug-bad") as caught:
            host.load_hooks()
        text = str(caught[0].message)
        assert text.startswith(f"hook plugin 'kdplug-bad:hooks' (kdplug_bad, kdplug-bad 1.0) failed: {told}")
        assert [kdplug.losses.names(), kdplug.tasks.names()] == [["from_object"], []]
        assert [plugin.error is None for plugin in host.hook_plugins] == [False, True]
        assert not any(
            impl.plugin_name == "kdplug-bad:hooks" for impl in host.manager.hook.kdplug_run_start.get_hookimpls()
        )
        assert ignored_records()[0]["dist"] == "kdplug-bad"


def test_pluggy_holds_hook_plugins_and_no_distribution_that_has_none(fake_site: FakeSite) -> None:
    fake_site.add("kdplug-plain", losses={"plain": "kdplug_plain:f"})
    add_hooks(fake_site, "kdplug-object", OBJECT, "kdplug_object:plugin")
    with fake_site.host() as host:
        host.load_hooks()
        assert "plain" in kdplug.losses
        assert [name for name, _ in host.manager.list_name_plugin()] == ["kdplug-object:hooks"]


def test_a_hook_plugin_is_imported_once(fake_site: FakeSite) -> None:
    add_hooks(fake_site, "kdplug-bad", "raise OSError('disk')")
    with fake_site.host():
        with pytest.warns(PluginWarning) as caught:
            active().load_hooks()
        active().load_hooks()
        assert len(caught) == 1


def test_a_miss_reports_what_is_wrong_with_the_hook_plugins(fake_site: FakeSite) -> None:
    add_hooks(fake_site, "kdplug-bad", "raise OSError('disk')")
    with fake_site.host() as host:
        with pytest.warns(PluginWarning, match="OSError: disk"):
            host.load_hooks()
        with pytest.raises(
            UnknownEntryError, match=r"no loss named 'lp1'\..*\n    hook plugin 'kdplug-bad:hooks' .* disk"
        ):
            kdplug.losses.entry("lp1")


def test_a_broken_hook_plugin_is_an_error_each_time_when_strict(fake_site: FakeSite) -> None:
    add_hooks(fake_site, "kdplug-bad", "raise OSError('disk')")
    with fake_site.host(strict=True):
        for _ in range(2):
            with pytest.raises(PluginError, match="OSError: disk"):
                kdplug.losses.entry("lp1")


def test_only_the_first_process_says_that_a_hook_plugin_failed(fake_site: FakeSite) -> None:
    add_hooks(fake_site, "kdplug-bad", "raise OSError('disk')")
    code = "import kdplug; kdplug.host.active.active().load_hooks()"
    assert fake_site.prints(code, LOCAL_RANK="1", RANK="1") == ""
    assert "OSError: disk" in fake_site.python(code, LOCAL_RANK="0").stderr


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def kdplug_lossses(): ...", "implements kdplug_lossses, which is not a hook. Did you mean 'kdplug_losses'?"),
        ("def kdplug_end(): ...", "implements kdplug_end, which is not a hook. Did you mean 'kdplug_run_end'?"),
        ("import kdplug\n@kdplug.hookimpl\ndef losses(): ...", "implements losses, which is not a hook. Did you mean"),
        ("import kdplug\n@kdplug.hookimpl(wrapper=True)\ndef kdplug_run_end():\n    yield",
         "implements kdplug_run_end as a wrapper, which is never called. Write a plain function"),
    ],
)  # fmt: skip
def test_a_hook_that_is_never_called_is_reported(fake_site: FakeSite, source: str, told: str) -> None:
    add_hooks(fake_site, "kdplug-odd", source)
    with fake_site.host() as host:
        with pytest.warns(PluginWarning, match="kdplug-odd:hooks implements"):
            host.load_hooks()
        assert host.problems[0].startswith(f"kdplug-odd:hooks {told}")
        assert host.hook_plugins[0].error is None


def test_an_unknown_hook_is_an_error_when_strict(fake_site: FakeSite) -> None:
    add_hooks(fake_site, "kdplug-odd", "def kdplug_lossses(): ...")
    with fake_site.host(strict=True) as host:
        for _ in range(2):
            with pytest.raises(PluginError, match="Did you mean 'kdplug_losses'"):
                host.load_hooks()


def test_a_plugin_that_asks_for_a_name_while_it_is_imported_does_not_go_round_in_circles(fake_site: FakeSite) -> None:
    add_hooks(
        fake_site, "kdplug-eager", "import kdplug\nkdplug.losses.get('nothing')\n" + OBJECT, "kdplug_eager:plugin"
    )
    with fake_site.host():
        assert kdplug.losses["from_object"] is len


def test_metadata_and_hooks_of_one_plugin_may_not_offer_one_name_twice(fake_site: FakeSite) -> None:
    files = {"kdplug_object.py": OBJECT}
    fake_site.add(
        "kdplug-object", losses={"from_object": "m:f"}, plugins={"hooks": "kdplug_object:plugin"}, files=files
    )
    with fake_site.host() as host:
        with pytest.warns(PluginWarning, match="offers the loss 'from_object' twice"):
            host.load_hooks()
        assert kdplug.losses.entry("from_object").target == "m:f"


def test_a_bare_name_that_a_hook_plugin_offers_too_is_ambiguous_as_soon_as_it_is_used(fake_site: FakeSite) -> None:
    files = {"kdplug_a.py": "def f(student_logits): return 'a'"}
    fake_site.add("kdplug-a", losses={"from_object": "kdplug_a:f"}, files=files)
    add_hooks(fake_site, "kdplug-object", OBJECT, "kdplug_object:plugin")
    with fake_site.host():
        assert kdplug.losses.check("from_object").qualified == "kdplug-a:from_object"
        assert kdplug.losses.build("kdplug-a:from_object").target(0) == "a"
        for use in (kdplug.losses.build, kdplug.losses.load):
            with pytest.raises(AmbiguousEntryError, match=r"kdplug-a:from_object .* kdplug-object:from_object"):
                use("from_object")


def test_using_a_qualified_first_party_or_local_name_imports_no_hook_plugin(fake_site: FakeSite) -> None:
    add_hooks(fake_site, "kdplug-loud", "raise SystemExit('imported')")
    files = {"kdplug_fake.py": "def f(student_logits): ..."}
    fake_site.add("kdplug-presets", losses={"ce": "kdplug_fake:f"}, files=files)
    fake_site.add("kdplug-a", losses={"dkd": "kdplug_fake:f"})
    with fake_site.host() as host:
        kdplug.losses.register("mine")(len)
        for name in ("ce", "kdplug-presets:ce", "kdplug-a:dkd"):
            kdplug.losses.build(name)
        kdplug.losses.load("mine")
        assert host.hook_plugins[0].error is None


def test_every_hook_has_a_worked_example() -> None:
    for name, hook in vars(hookspec).items():
        if name.startswith(hookspec.PREFIX):
            assert f"@kdplug.hookimpl\n        def {name}(" in (hook.__doc__ or "")


def test_the_hooks_are_these() -> None:
    assert sorted(name for name in vars(hookspec) if name.startswith(hookspec.PREFIX)) == [
        "kdplug_balancers",
        "kdplug_cache_codecs",
        "kdplug_evaluated",
        "kdplug_evaluators",
        "kdplug_layer_maps",
        "kdplug_losses",
        "kdplug_projections",
        "kdplug_run_end",
        "kdplug_run_start",
        "kdplug_step_end",
        "kdplug_step_start",
        "kdplug_student_transforms",
        "kdplug_tasks",
        "kdplug_teacher_combiners",
        "kdplug_teacher_updates",
        "kdplug_teachers",
        "kdplug_temperature_schedulers",
        "kdplug_weight_schedulers",
    ]
