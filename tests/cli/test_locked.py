"""``kdplug run --locked``: the same run again, or what differs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from kdplug.cli.app import app

RECIPE = """
task: {name: digits, teacher_epochs: 1}
distillation: {kd_loss_type: ce, temperature_scheduler: [flsw, 1, 1], hard_label_weight: 1}
training: {num_steps: 1, ckpt_frequency: 0}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locked")
    (folder / "recipe.yaml").write_text(RECIPE)
    done = CliRunner().invoke(app, ["run", str(folder / "recipe.yaml"), "--output-dir", str(folder / "first")])
    assert done.exit_code == 0
    return folder


@pytest.fixture
def again(kdplug, folder, tmp_path):
    def run(*words, **changes):
        record = json.loads((folder / "first" / "kdplug-run.json").read_text())
        lock = tmp_path / "kdplug-run.json"
        lock.write_text(json.dumps({**record, **changes}))
        return kdplug("run", folder / "recipe.yaml", "--output-dir", tmp_path / "out", "--locked", lock, *words)

    return run


def test_the_record_names_every_used_entry_with_all_of_its_settings(folder):
    entries = json.loads((folder / "first" / "kdplug-run.json").read_text())["entries"]
    assert {entry["path"]: entry["name"] for entry in entries} == {
        "task": "kdplug-tasks:digits",
        "distillation.temperature_scheduler": "kdplug-presets:flsw",
        "distillation.terms.0.loss": "kdplug-presets:ce",
        "distillation.terms.0.temperature_scheduler": "kdplug-presets:flsw",
    }
    assert set(entries[1]["settings"]) == {"beta", "gamma", "eps", "min_temperature"}


def test_the_same_run_runs_again_into_another_folder(again, tmp_path):
    assert again().exit_code == 0
    assert (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("seed=3", "seed: 0 in the lock, 3 here"),
        ("task.label_seed=1", "task.label_seed: 0 in the lock, 1 here"),
        (
            "distillation.temperature_scheduler.1=2",
            "distillation.temperature_scheduler.beta: 1.0 in the lock, 2.0 here",
        ),
        ("distillation.kd_loss_type=mse", "terms.0.loss.name: kdplug-presets:ce in the lock, kdplug-presets:mse here"),
    ],
)
def test_another_recipe_is_refused_with_what_differs_and_leaves_no_folder(again, tmp_path, change, told):
    done = again("--set", change)
    assert done.exit_code == 2
    assert told in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_plugin_is_reported_before_the_recipe_is_read(again):
    plugin = {"dist": "kdplug-gone", "version": "1.2", "sha256": None}
    done = again("--set", "distillation.kd_loss_type=gone", plugins=[plugin])
    assert done.exit_code == 2
    assert "kdplug-gone 1.2 is not installed: pip install kdplug-gone==1.2" in done.stderr


def test_a_lock_that_is_not_there_is_an_error(kdplug, folder, tmp_path):
    done = kdplug("run", folder / "recipe.yaml", "--locked", tmp_path / "nowhere.json")
    assert done.exit_code == 2
    assert "error: --locked: there is no file" in done.stderr


def test_an_incompatible_plugin_is_listed_with_what_it_needs(kdplug, fake_site):
    info = fake_site.add("kdplug-new", losses={"mykd": "kdplug_new:mykd"})
    (info / "METADATA").write_text("Name: kdplug-new\nVersion: 1.0\nRequires-Dist: kdplug>=9\n")
    with fake_site.host():
        (row,) = json.loads(kdplug("plugins", "list", "--json").stdout)
        assert (row["name"], row["status"]) == ("mykd", "incompatible")
        assert "kdplug-new needs kdplug>=9, but this is kdplug 0.1.0" in kdplug("plugins", "list").stdout
