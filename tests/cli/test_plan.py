"""``kdplug plan``: tables for people, data for programs, and one message for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdplug.cli.plan import size

DIGITS = Path(__file__).parents[2] / "examples" / "digits.yaml"


def test_a_plan_is_printed_and_nothing_is_written(kdplug, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = kdplug("plan", DIGITS)
    assert done.exit_code == 0, done.stderr
    words = [
        "kdplug-tasks:digits on cpu",
        "kdplug-presets:flsw",
        "2 [32, 4, 20]",
        "20 → 128, 2,688 parameters",
        "94,186",
    ]
    places = [done.stdout.index(word) for word in [*words, "optimizer state", "1920", "no warnings"]]
    assert places == sorted(places)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_says_that_its_values_are_those_of_a_teacher_that_is_not_trained_yet(kdplug):
    said = " ".join(kdplug("plan", DIGITS).stdout.split())
    assert "The teacher is still untrained here, so the values and gradient norms of terms that use it" in said


def test_a_temperature_that_no_term_reads_is_not_printed(kdplug):
    said = kdplug(
        "plan", DIGITS, "--set", "distillation.kd_loss_type=ranking", "--set", "distillation.temperature_scheduler=null"
    )
    assert said.exit_code == 0, said.stderr
    assert "temperature" not in said.stdout.partition("warning")[0]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1000 * 1024, "1,000 KiB"),
        (1024**2 - 1, "1,024 KiB"),
        (999 * 1024**2, "999 MiB"),
        (13 * 1024**2, "13 MiB"),
    ],
)
def test_a_size_is_never_printed_with_an_exponent(count, shown):
    assert size(count) == shown


def test_a_warning_leaves_the_exit_status_at_0(kdplug):
    done = kdplug("plan", DIGITS, "--set", "distillation.kd_loss_type=ce")
    assert done.exit_code == 0
    assert "warning: distillation.kd_loss_type: kdplug-presets:ce omits the factor T²" in done.stdout
    assert "1 warning\n" in done.stdout


def test_the_data_say_the_same(kdplug):
    done = kdplug("plan", DIGITS, "--json", "--set", "distillation.kd_loss_type=ce")
    found = json.loads(done.stdout)
    assert found["steps"] == {"teacher": 160, "no_teacher": 1920, "distilled": 1920}
    assert [term["name"] for term in found["terms"]] == ["kd_loss", "feature_map", "hard_label_loss"]
    assert found["matches"][0]["projection"]["in_dim"] == 20
    assert found["memory_bytes"] == sum(item["bytes"] for item in found["memory"])
    assert [warning["check"] for warning in found["warnings"]] == ["temperature"]


DOING = "Reading the data, building both models, and running their first batches …"


def test_a_plan_prints_at_once_what_it_does(kdplug):
    assert kdplug("plan", DIGITS, "--json").stderr.splitlines()[0] == DOING


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("distillation.kd_loss_type=cee", "distillation.kd_loss_type: no loss named 'cee'. Did you mean 'ce'"),
        ("distillation.intermediate_matches.0.layer_S=7", "intermediate_matches.0.layer_S: there is no layer 7"),
        ("training.optimizer=Adamw", "training.optimizer: torch.optim has no optimizer 'Adamw'"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_error_is_one_message_and_exit_code_1(kdplug, change, message, more):
    done = kdplug("plan", DIGITS, "--set", change, *more)
    assert done.exit_code == 1
    *before, error = done.stderr.splitlines()
    assert before in ([], [DOING])
    assert error.startswith("error: ")
    assert message in error
    assert done.stdout == ""


def test_a_reader_that_closes_the_output_is_no_error(tmp_path):
    (tmp_path / "digits.yaml").write_text("{task: digits, distillation: {kd_loss_type: kl}, training: {num_epochs: 1}}")
    command = [sys.executable, "-m", "kdplug", "plan", "digits.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as plan:
        plan.stdout.close()
        assert "called exit" not in plan.stderr.read()
