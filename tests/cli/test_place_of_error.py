"""An error of a recipe names where the value was set: the line of the file, or the option."""

from __future__ import annotations

import pytest

LINES = """\
task:
  name: digits
  labels_per_class: 10
distillation:
  temperature: 4
training:
  num_epochs: 1
  device: cpu
"""


@pytest.fixture
def failed(kdplug, tmp_path):
    """The error of a command on a recipe with a replaced text, on one line."""

    def run(old, new, *words, command="plan"):
        file = tmp_path / "r.yaml"
        file.write_text(LINES.replace(old, new) if old else LINES)
        done = kdplug(command, file, *words)
        assert done.exit_code == (1 if command == "plan" else 2)
        return " ".join(done.stderr.split())

    return run


def test_a_setting_of_a_task_names_its_line(failed):
    assert failed("_class: 10", "_class: 0").endswith("task.labels_per_class: must be >= 1, got 0 (r.yaml, line 3)")


def test_a_setting_given_by_position_names_the_line_of_the_task(failed):
    said = failed("  name: digits\n  labels_per_class: 10\n", "  - digits\n  - 0\n")
    assert said.endswith("the 1st setting is 'labels_per_class') (r.yaml, line 1)")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("task.labels_per_class=0", "task.labels_per_class: must be >= 1, got 0 (--set task.labels_per_class)"),
        ("task.labels=0", "has no setting 'labels'"),
        ("training.lr=-1", "training.lr: must be > 0, got -1 (--set training.lr)"),
        ("distillation.kd_loss_type=nosuch", "(--set distillation.kd_loss_type)"),
        ("distillation.kd_loss_type={name: kl, nosuch: 1}", "(--set distillation.kd_loss_type)"),
        ("training.num_steps=1", "got 1 and 1. Set one of the two to null (--set training.num_steps)"),
        ("training.nosuch.x=1", "--set training.nosuch.x)"),
    ],
)
def test_a_value_that_an_option_sets_names_the_option(failed, change, says):
    said = failed("", "", "--set", change)
    assert says in said
    assert "--set" in said
    assert said.count("r.yaml") == (
        change in {"training.nosuch.x=1", "task.labels=0"}
    )  # what they are in is in the file


def test_the_line_is_named_for_a_value_that_no_option_sets(failed):
    said = failed("_class: 10", "_class: 0", "--set", "training.lr=1.0")
    assert said.endswith("(r.yaml, line 3)")


def test_the_short_options_are_named_as_they_are_written(failed, tmp_path):
    (tmp_path / "file").touch()
    assert failed("", "", "--seed", "-1", command="run").endswith("(--seed)")
    assert failed("", "", "--output-dir", tmp_path / "file", command="run").endswith("(--output-dir)")


def test_several_errors_of_the_file_name_their_line_once(failed):
    said = failed("temperature: 4", "temperature: -4\n  kd_loss_weight: -1")
    assert said.count("r.yaml") == 2
    assert "line 5" in said
    assert "line 6" in said
