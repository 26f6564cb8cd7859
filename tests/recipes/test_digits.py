"""The recipe in ``examples/digits.yaml``, with a small budget, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_model
from torch.utils.data import DataLoader

import kdplug
from kdplug import Recipe
from kdplug.recipes.measure import evaluate
from kdplug.recipes.output_folder import FILES, LIST

DIGITS = Path(__file__).parents[2] / "examples" / "digits.yaml"
SMALL = ("training.num_epochs=2", "task.teacher_epochs=1", "task.labels_per_class=2")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a run, and what it printed."""
    folder = tmp_path_factory.mktemp("digits") / "out"
    words = ["run", str(DIGITS), "--output-dir", str(folder), "--seed", "3", "--seeds", "1"]
    words += [word for change in SMALL for word in ("--set", change)]
    code = "from kdplug.cli.app import main; main()"
    kept = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, *words],
        capture_output=True, text=True, timeout=300, env={**kept, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return folder, run.stdout


def _json(folder, name):
    return json.loads((folder / name).read_text())


def test_a_run_writes_these_files_and_no_other(done):
    assert sorted(path.name for path in done[0].iterdir()) == sorted([*FILES, LIST, "teacher", "seed-3"])


def test_each_arm_leaves_its_last_and_its_best_checkpoint_where_none_was_asked_for(done):
    for arm in ("no_teacher", "distilled"):
        (run,) = _json(done[0], "metrics.json")["arms"][arm]["runs"]
        steps = {path.name for path in (done[0] / "seed-3" / arm).glob("step-*")}
        assert steps == {"step-64", f"step-{run['best_step']}"}
    assert [path.name for path in (done[0] / "teacher").glob("step-*")] == ["step-16"]


def test_a_run_prints_plugins_then_task_then_terms_then_the_comparison(done):
    words = ["plugins: ", "gets the labels of only 20 of them", "kdplug-presets:flsw", "feature_map"]
    words += ["kdplug-presets:linear_decay", "student, without distillation", "student, distilled", "Written to"]
    places = [done[1].index(word) for word in words]
    assert places == sorted(places)


def test_the_closing_line_lists_every_file(done):
    closing = " ".join(done[1][done[1].index("Written to") :].split())
    assert closing.endswith(f": {', '.join(FILES)}")


def test_the_comparison_names_accuracy_parameters_and_time(done):
    row = next(line for line in done[1].splitlines() if "│ teacher " in line)
    assert row.split("│")[3].strip() == "94,186"
    assert row.split("│")[4].strip().endswith(("µs", "ms"))


def test_the_saved_student_is_the_one_that_was_measured(done):
    folder, _ = done
    task = kdplug.tasks.build({"name": "digits", "labels_per_class": 2}).target
    student = task.build_student()
    assert load_model(student, folder / "student.safetensors") == (set(), [])
    figures = evaluate(
        task, student, DataLoader(task.data("test"), batch_size=256, collate_fn=task.collate), "accuracy"
    )
    assert figures["accuracy"] == pytest.approx(
        _json(folder, "metrics.json")["arms"]["distilled"]["runs"][0]["metrics"]["accuracy"], abs=2e-3
    )


def test_the_metrics_are_of_three_models(done):
    metrics = _json(done[0], "metrics.json")
    assert metrics["optimizer_steps"] == 2 * 32
    assert list(metrics["arms"]) == ["teacher", "no_teacher", "distilled"]
    costs = {"parameters", "bytes", "seconds_per_example", "units_per_second"}
    for arm in metrics["arms"].values():
        assert {"metrics", "runs", "per_class", "confusion", "calibration", *costs} <= set(arm)


def test_the_record_holds_a_recipe_that_means_the_same(done):
    record = _json(done[0], "kdplug-run.json")
    recipe = Recipe.from_dict(record["recipe"])
    assert recipe.distillation == Recipe.from_file(DIGITS).distillation.resolved()
    assert (recipe.seed, record["seed"], record["recipe"]["task"]["teacher_epochs"]) == (3, 3, 1)


def test_the_record_names_versions_plugins_and_every_setting(done):
    record = _json(done[0], "kdplug-run.json")
    assert record["kdplug"] == kdplug.__version__
    assert {"kdplug-presets", "kdplug-tasks"} <= {plugin["dist"] for plugin in record["plugins"]}
    assert record["recipe"]["distillation"]["temperature_scheduler"]["gamma"] == 1
    assert len(record["config_sha256"]) == 64


def test_the_record_does_not_say_where_it_was_written(done):
    assert str(done[0]) not in (done[0] / "kdplug-run.json").read_text()


def test_the_curves_are_a_picture(done):
    assert (done[0] / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_recipe_uses_every_kind_of_component():
    config = Recipe.from_file(DIGITS).distillation
    (match,) = config.intermediate_matches
    assert None not in (config.temperature_scheduler, match.proj, match.weight_scheduler)
    assert config.hard_label_weight > 0
