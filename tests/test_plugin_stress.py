"""Three hundred plugins of which some are in disorder: lists stay right, and a config loads only what it names."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from benchmarks.plugin_stress import AMBIGUOUS, BROKEN, DISTRIBUTIONS, ENTRIES, STALE, fill
from fake_install import FakeSite

from kdplug.host.check.check import check_plugins


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowd")
    (folder / "site").mkdir()
    fill(folder / "site", folder / "projects")
    return FakeSite(folder / "site")


def test_the_list_names_every_entry_with_its_status_and_imports_neither_torch_nor_a_plugin(crowd):
    code = """
        import sys
        from kdplug.cli.app import app
        app(['plugins', 'list', '--json', '--kind', 'loss'], standalone_mode=False)
        print(sorted({name for name in sys.modules if name.startswith('fake_')} | {'torch'} & set(sys.modules)))
    """
    listed, _, imported = crowd.prints(code).rpartition("\n")
    rows = [row for row in json.loads(listed) if row["package"].startswith("kdplug-fake-")]
    assert imported == "[]"
    assert len({row["package"] for row in rows}) == DISTRIBUTIONS
    assert Counter(row["status"] for row in rows) == {"ok": ENTRIES - AMBIGUOUS, "ambiguous": AMBIGUOUS}
    assert all(row["name"].startswith("both_") for row in rows if row["status"] == "ambiguous")


def test_loading_finds_the_broken_ones_and_no_others(crowd):
    code = """
        from kdplug.cli.app import app
        app(['plugins', 'list', '--json', '--load', '--kind', 'loss'], standalone_mode=False)
    """
    rows = json.loads(crowd.prints(code))
    assert [row["name"] for row in rows if row["status"] == "broken"] == [
        f"broken_{number}" for number in range(BROKEN)
    ]


def test_a_config_imports_the_plugins_that_it_names_and_no_other(crowd):
    code = """
        import sys, torch, kdplug
        match = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse"}
        config = kdplug.DistillationConfig(kd_loss_type="loss_100_3", intermediate_matches=[match])
        before = {name for name in sys.modules if name.startswith('fake_')}
        objective = kdplug.Objective(config)
        logits, hidden = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, 4, requires_grad=True)
        report = objective(student={"logits": logits, "hidden": [hidden]}, teacher={"logits": logits * 0, "hidden": [hidden.detach()]})
        print(before, {name for name in sys.modules if name.startswith('fake_')}, float(report.total.detach()))
    """
    assert crowd.prints(code) == "set() {'fake_100'} 1.0"


def test_an_ambiguous_name_is_an_error_until_it_is_qualified(crowd):
    code = """
        import kdplug
        try:
            kdplug.DistillationConfig(kd_loss_type="both_20")
        except kdplug.EntryError as error:
            print(error)
        kdplug.Objective(kdplug.DistillationConfig(kd_loss_type="kdplug-fake-041:both_20"))
    """
    assert crowd.prints(code) == (
        "kd_loss_type: 'both_20' is offered by 2 packages: kdplug-fake-040:both_20 (1.0), kdplug-fake-041:both_20 (1.0). "
        "Write one of these."
    )


def test_a_check_finds_everything_that_is_wrong_and_nothing_else(crowd, monkeypatch):
    monkeypatch.syspath_prepend(str(crowd.folder))
    with crowd.host():
        found = Counter(one.check for one in check_plugins() if one.dist.startswith("kdplug-fake-"))
    crowd.forget_modules()
    assert found == {"broken": BROKEN, "ambiguous": AMBIGUOUS, "drifted": STALE}
