"""``kdplug run``: what it says of a recipe that cannot be carried out."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdplug.cli.run import read_seeds
from kdplug.errors import ConfigError
from kdplug.recipes.run import ControlError

DIGITS = Path(__file__).parents[2] / "examples" / "digits.yaml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distillation.kd_loss_type=cee", "distillation.kd_loss_type: no loss named 'cee'. Did you mean 'ce'"),
        (
            "distillation.intermediate_matches.0.loss=hiden_mse",
            "distillation.intermediate_matches.0.loss: no loss named 'hiden_mse'. Did you mean 'hidden_mse'",
        ),
        ("task.name=digit", "task: no task named 'digit'. Did you mean 'digits'"),
        ("task.labels_per_class=0", "task.labels_per_class: must be >= 1, got 0"),
        ("task.label_per_class=5", "Did you mean 'labels_per_class'?"),
        (
            "distillation.temperature_scheduler=[flsw, 1, -1]",
            "distillation.temperature_scheduler.gamma: must be >= 0, got -1",
        ),
        ("training.num_epoch=3", "training.num_epoch: unknown key. Did you mean 'num_epochs'?"),
        ("training.optimizer=Adamw", "training.optimizer: torch.optim has no optimizer 'Adamw'. Did you mean 'AdamW'?"),
        ("num_epochs", "Write path=value"),
    ],
)
def test_a_wrong_value_is_one_message_and_exit_code_2(kdplug, tmp_path, change, message):
    done = kdplug("run", DIGITS, "--set", change, "--output-dir", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_recipe_leaves_no_folder_behind(kdplug, tmp_path):
    kdplug("run", DIGITS, "--set", "training.optimizer=Adamw", "--output-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_an_error_that_names_the_nearest(kdplug):
    done = kdplug("run", DIGITS.with_name("digit.yaml"))
    assert done.exit_code == 2
    assert "Did you mean 'digits.yaml'?" in done.stderr


def test_an_output_dir_that_is_a_file_is_an_error(kdplug, tmp_path):
    (tmp_path / "out").write_text("")
    done = kdplug("run", DIGITS, "--output-dir", tmp_path / "out")
    assert done.exit_code == 2
    assert "output_dir: cannot write to" in done.stderr


def test_debug_lets_the_error_through(kdplug):
    done = kdplug("run", DIGITS, "--set", "training.lr=-1", "--debug")
    assert isinstance(done.exception, ConfigError)


@pytest.mark.parametrize(("text", "seeds"), [("3", 3), ("0..4", [0, 1, 2, 3, 4]), ("0, 2,5", [0, 2, 5])])
def test_seeds_are_a_number_a_range_or_a_list(text, seeds):
    assert read_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4..0", "0..", "1,,2", "-1", "0..99999999999", "0..5,7"])
def test_other_seeds_are_refused(text):
    with pytest.raises(ConfigError, match=r"--seeds: must be a count \(3\), a range"):
        read_seeds(text)


def test_a_control_that_fails_is_status_1(kdplug, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise ControlError("a control failed")

    monkeypatch.setattr("kdplug.recipes.run.run_recipe", fails)
    done = kdplug("run", DIGITS, "--output-dir", tmp_path)
    assert (done.exit_code, done.stderr) == (1, "error: a control failed\n")
