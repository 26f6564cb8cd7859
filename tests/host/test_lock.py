"""Comparing a run with the record of an earlier one."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from fake_install import FakeSite

from kdplug.errors import ConfigError, RunError
from kdplug.host.lock import check_environment, check_locked, differences, read_lock
from kdplug.host.manifest import environment_record

PLUGIN = {"dist": "kdplug-a", "version": "1.0", "editable": False, "commit": None, "sha256": "aa", "hooks": []}
RECORD = {
    "kdplug": "0.1.0",
    "plugin_api": 1,
    "python": "3.11.7",
    "torch": "2.13.0",
    "plugins": [PLUGIN],
    "ignored_plugins": [],
    "recipe": {
        "task": {"name": "kdplug-a:toy", "size": 3},
        "distillation": {
            "kd_loss_type": {"name": "kdplug-a:dkd", "alpha": 1.0},
            "intermediate_matches": [{"weight": 1}],
        },
    },
    "config_sha256": "cc",
}


def now(**changes):
    return {**deepcopy(RECORD), **changes}


def plugin(**changes):
    return {**PLUGIN, **changes}


def test_a_run_done_again_differs_in_nothing():
    assert differences(RECORD, now()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kdplug": "0.2.0"}, "kdplug: 0.1.0 in the lock, 0.2.0 here: pip install kdplug==0.1.0"),
        ({"torch": "2.12.0"}, "torch: 2.13.0 in the lock, 2.12.0 here"),
        ({"python": "3.12.1"}, "python: 3.11.7 in the lock, 3.12.1 here"),
        ({"plugins": []}, "kdplug-a 1.0 is not installed: pip install kdplug-a==1.0"),
        (
            {"plugins": [plugin(version="2.0", sha256="bb")]},
            "kdplug-a: 1.0 in the lock, 2.0 here: pip install kdplug-a==1.0",
        ),
        (
            {"plugins": [plugin(sha256="bb", editable=True)]},
            "kdplug-a 1.0, editable: its content differs (sha256 aa in the lock, bb here)",
        ),
        (
            {"plugins": [], "ignored_plugins": [{"dist": "Kdplug_A", "version": "1.0", "reason": "KDPLUG_PLUGINS=''"}]},
            "kdplug-a 1.0 is disabled: KDPLUG_PLUGINS=''",
        ),
        (
            {"plugins": [PLUGIN, plugin(dist="kdplug-spy", hooks=["spy"])]},
            "kdplug-spy 1.0 has hooks and is not in the lock. Disable it: KDPLUG_PLUGINS=-kdplug-spy",
        ),
        (
            {"config_sha256": "dd"},
            "config_sha256: cc in the lock, dd here, but the recipes are equal: the lock was edited by hand",
        ),
    ],
)
def test_each_difference_is_one_sentence_with_both_values(changes, told):
    assert differences(RECORD, now(**changes)) == [told]


@pytest.mark.parametrize(
    "changes",
    [
        {"python": "3.11.9"},
        {"plugins": [plugin(editable=True, commit="abc")]},
        {"plugins": [PLUGIN, plugin(dist="kdplug-other")]},
        {"plugins": [plugin(dist="Kdplug_A")]},
    ],
    ids=["a patch of python", "the same content by another way", "a plugin that is not named", "another spelling"],
)
def test_what_cannot_change_a_run_is_no_difference(changes):
    assert differences(RECORD, now(**changes)) == []


def test_without_a_hash_the_commit_identifies():
    locked = now(plugins=[plugin(sha256=None, commit="abc")])
    assert differences(locked, now(plugins=[plugin(sha256=None, commit="abc")])) == []
    assert differences(locked, now(plugins=[plugin(sha256=None, commit="def")])) == [
        "kdplug-a 1.0: its commit differs (commit abc in the lock, def here)"
    ]


def test_a_changed_setting_is_named_by_its_path_and_not_by_the_hash():
    changed = now(config_sha256="dd")
    changed["recipe"]["distillation"]["kd_loss_type"] = {"name": "kdplug-a:dkd", "alpha": 2.0, "beta": 8}
    changed["recipe"]["distillation"]["intermediate_matches"][0]["weight"] = True
    assert differences(RECORD, changed) == [
        "distillation.kd_loss_type.alpha: 1.0 in the lock, 2.0 here",
        "distillation.kd_loss_type.beta: nothing in the lock, 8 here",
        "distillation.intermediate_matches.0.weight: 1 in the lock, true here",
    ]


def test_every_difference_is_reported_at_once(tmp_path):
    path = tmp_path / "kdplug-run.json"
    path.write_text(json.dumps(RECORD))
    with pytest.raises(RunError) as caught:
        check_locked(path, now(kdplug="0.2.0", torch="2.12.0"))
    assert str(caught.value).splitlines() == [
        f"--locked: 2 differences from {str(path)!r}:",
        "    kdplug: 0.1.0 in the lock, 0.2.0 here: pip install kdplug==0.1.0",
        "    torch: 2.13.0 in the lock, 2.12.0 here",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no file"),
        ("{", "cannot read"),
        ("[]", "it is not a mapping"),
        ("{}", "it lacks 'kdplug'"),
        (json.dumps({**RECORD, "plugins": "all"}), "'plugins' is all"),
        (json.dumps({**RECORD, "plugins": [{"dist": "a"}]}), "is not a plugin record"),
        (json.dumps({**RECORD, "torch": None}), "'torch' is null"),
        ("\ud800", "cannot read"),
    ],
)
def test_a_file_that_is_no_record_is_refused_by_name(tmp_path, text, says):
    path = tmp_path / "lock.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=r"^--locked: ") as caught:
        read_lock(path)
    assert says in str(caught.value)
    assert "lock.json" in str(caught.value)


def test_the_environment_is_checked_before_a_plugin_is_imported(fake_site: FakeSite, tmp_path):
    path = tmp_path / "lock.json"
    info = fake_site.add("kdplug-a", plugins={"p": "kdplug_a"}, files={"kdplug_a.py": "raise SystemExit('imported')"})
    with fake_site.host():
        path.write_text(json.dumps({**RECORD, **environment_record()}))
        check_environment(path)
        (info / "RECORD").write_text("kdplug_a.py,sha256=changed,1\n")
        with pytest.raises(RunError, match=r"kdplug-a 1\.0: its content differs"):
            check_environment(path)
