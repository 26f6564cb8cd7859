"""``kdplug plugins list``: every entry, and what has become of it."""

from __future__ import annotations

import json

import pytest

LOSS = "def f(student_logits, teacher_logits): ..."


def _listed(kdplug, *words):
    """Qualified name to status."""
    rows = json.loads(kdplug("plugins", "list", "--json", *words).stdout)
    return {f"{row['package']}:{row['name']}": row["status"] for row in rows}


def test_the_columns_are_name_kind_package_version_and_status(kdplug, fake_site):
    fake_site.add("kdplug-a", "1.2", losses={"mykd": "m:f"})
    with fake_site.host():
        head, row = kdplug("plugins", "list").stdout.splitlines()
    assert head.split() == ["name", "kind", "package", "version", "status"]
    assert row.split() == ["mykd", "loss", "kdplug-a", "1.2", "ok"]


def test_json_has_one_object_for_each_entry(kdplug, fake_site):
    fake_site.add("kdplug-a", losses={"mykd": "m:f"})
    with fake_site.host():
        rows = json.loads(kdplug("plugins", "list", "--json").stdout)
    row = {"name": "mykd", "kind": "loss", "package": "kdplug-a", "version": "1.0", "status": "ok", "error": None}
    assert rows == [{**row, "declares": None}]


DECLARED = """
import kdplug

@kdplug.coarsens
def declared(student_logits, teacher_logits): ...

def plain(student_logits, teacher_logits): ...

def summed(student_logits, teacher_logits) -> kdplug.LossSum: ...

def weights(progress): ...
"""


def test_load_lists_what_each_loss_declares(kdplug, fake_site):
    losses = {
        "declared": "kdplug_a:declared",
        "plain": "kdplug_a:plain",
        "summed": "kdplug_a:summed",
        "bad": "kdplug_a:missing",
    }
    offers = {"losses": losses, "weight_schedulers": {"weights": "kdplug_a:weights"}}
    fake_site.add("kdplug-a", files={"kdplug_a.py": DECLARED}, **offers)
    with fake_site.host():
        rows = json.loads(kdplug("plugins", "list", "--json", "--load").stdout)
        head, *lines = kdplug("plugins", "list", "--load").stdout.splitlines()
    declared = {row["name"]: row["declares"] for row in rows}
    assert declared == {
        "bad": None,
        "declared": ["coarsens"],
        "plain": [],
        "summed": ["-> LossSum"],
        "weights": None,
    }
    assert head.split()[-1] == "declares"
    assert next(line for line in lines if line.startswith("declared")).split()[-1] == "coarsens"


def test_two_packages_that_offer_one_name_make_it_ambiguous(kdplug, fake_site):
    for name in ("kdplug-a", "kdplug-b"):
        fake_site.add(name, losses={"mykd": "m:f"})
    with fake_site.host():
        assert _listed(kdplug) == {"kdplug-a:mykd": "ambiguous", "kdplug-b:mykd": "ambiguous"}


def test_a_name_that_a_first_party_package_has_too_is_shadowed(kdplug, fake_site):
    for name in ("kdplug-presets", "kdplug-b"):
        fake_site.add(name, losses={"ce": "m:f"})
    with fake_site.host():
        assert _listed(kdplug) == {"kdplug-b:ce": "shadowed", "kdplug-presets:ce": "ok"}


def test_what_the_switch_leaves_out_is_listed_as_blocked(kdplug, fake_site):
    fake_site.add("kdplug-a", losses={"mykd": "m:f"})
    with fake_site.host(without=frozenset({"kdplug-a"}), text="-kdplug-a"):
        assert _listed(kdplug) == {"kdplug-a:mykd": "blocked"}
        assert "kdplug-a is disabled by KDPLUG_PLUGINS='-kdplug-a'" in kdplug("plugins", "list").stdout


def test_a_broken_plugin_is_found_out_only_with_load(kdplug, fake_site):
    fake_site.add("kdplug-bad", losses={"x": "kdplug_bad:X"}, files={"kdplug_bad.py": "import no_such_module"})
    with fake_site.host():
        assert _listed(kdplug) == {"kdplug-bad:x": "ok"}
        assert _listed(kdplug, "--load") == {"kdplug-bad:x": "broken"}
        assert "No module named 'no_such_module'" in kdplug("plugins", "list", "--load").stdout


@pytest.mark.parametrize(
    ("source", "name"),
    [("import no_such_module", "'kdplug-bad:entry'"), ("def f(student_logit): ...", "entry (kdplug-bad)")],
)
def test_a_broken_entry_is_named_once_below_the_list(kdplug, fake_site, source, name):
    fake_site.add("kdplug-bad", losses={"entry": "kdplug_bad:f"}, files={"kdplug_bad.py": source})
    with fake_site.host():
        _, below = kdplug("plugins", "list", "--load").stdout.split("broken: ")
    assert below.startswith(name)
    assert below.count("entry") == 1


@pytest.mark.filterwarnings("always::kdplug.host.host.PluginWarning")
def test_a_broken_hook_plugin_is_reported_once(kdplug, fake_site):
    fake_site.add("kdplug-bad", plugins={"mine": "kdplug_bad"}, files={"kdplug_bad.py": "import no_such_module"})
    with fake_site.host():
        done = kdplug("plugins", "list", "--load")
    assert done.stdout.splitlines()[-1].split() == ["mine", "hooks", "kdplug-bad", "1.0", "broken"]
    assert done.stderr.count("No module named 'no_such_module'") == 1


def test_one_broken_plugin_does_not_hide_another(kdplug, fake_site):
    fake_site.add("kdplug-bad", losses={"x": "kdplug_bad:X"}, files={"kdplug_bad.py": "1 / 0"})
    fake_site.add("kdplug-good", losses={"y": "kdplug_good:f"}, files={"kdplug_good.py": LOSS})
    with fake_site.host():
        assert _listed(kdplug, "--load") == {"kdplug-bad:x": "broken", "kdplug-good:y": "ok"}


def test_an_entry_that_asks_for_what_there_is_not_is_broken(kdplug, fake_site):
    source = "def f(student_logit): ..."
    fake_site.add("kdplug-a", losses={"x": "kdplug_a:f"}, files={"kdplug_a.py": source})
    with fake_site.host():
        assert _listed(kdplug, "--load") == {"kdplug-a:x": "broken"}
        assert "Did you mean 'student_logits'?" in kdplug("plugins", "list", "--load").stdout


def test_hook_plugins_are_listed_under_a_kind_of_their_own(kdplug, fake_site):
    fake_site.add("kdplug-a", plugins={"hooks": "kdplug_a"}, files={"kdplug_a.py": ""})
    with fake_site.host():
        (row,) = json.loads(kdplug("plugins", "list", "--json").stdout)
    assert (row["name"], row["kind"], row["package"], row["status"]) == ("hooks", "hooks", "kdplug-a", "ok")


@pytest.mark.parametrize("word", ["weight_schedulers", "weight-scheduler", "Weight Scheduler"])
def test_a_kind_may_be_spelled_in_several_ways(kdplug, fake_site, word):
    fake_site.add("kdplug-a", losses={"mykd": "m:f"}, weight_schedulers={"w": "m:f"})
    with fake_site.host():
        assert _listed(kdplug, "--kind", word) == {"kdplug-a:w": "ok"}


def test_an_unknown_kind_is_an_error_that_names_the_nearest(kdplug):
    done = kdplug("plugins", "list", "--kind", "lossses")
    assert done.exit_code == 2
    assert "--kind: unknown kind 'lossses'. Did you mean 'losses'?" in done.stderr


def test_without_any_plugin_the_list_says_what_to_install(kdplug, no_plugins):
    assert "pip install kdplug-presets" in kdplug("plugins", "list").stdout
