"""Arms and seeds of a recipe: validation, controls, one verdict, and runs that fail."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from scipy import stats
from sklearn.metrics import f1_score
from typer.testing import CliRunner

import kdplug
from kdplug import Predictions
from kdplug.cli.app import app
from kdplug.config.recipe import Recipe
from kdplug.errors import ConfigError, RunError
from kdplug.recipes.arm import Arm, ArmRun
from kdplug.recipes.comparison import better_control
from kdplug.recipes.measure import Figures
from kdplug.recipes.recipe_runner import RecipeRunner
from kdplug.recipes.run import ControlError, run_recipe
from kdplug.recipes.task import MetricOf, build_task


def printed(recipe, **options):
    """What a run prints, on one line, and the error that it ends with."""
    out, error = io.StringIO(), None
    try:
        run_recipe(recipe, console=Console(file=out, width=200), **options)
    except RunError as raised:
        error = raised
    return " ".join(out.getvalue().split()), error


def metrics_of(recipe):
    return json.loads((Path(recipe.output_dir) / "metrics.json").read_text())


@pytest.fixture
def fitted(monkeypatch):
    """The task's teacher is fitted, so that there are runs before the students'."""
    task = kdplug.tasks.load("signs")
    monkeypatch.setattr(task, "teacher_fit", lambda self: {"epochs": 1, "batch_size": 8, "learning_rate": 0.1})
    monkeypatch.setattr(task, "teacher_adaptor", task.student_adaptor)


def test_test_examples_are_looked_at_once_by_each_student_and_never_trained_on(signs, monkeypatch):
    task, seen = kdplug.tasks.load("signs"), []
    data, predict = task.data, task.predict

    def watched(self, model, batches):
        batches = list(batches)
        seen.append(sum(len(batch[0]) for batch in batches))
        return predict(self, model, batches)

    monkeypatch.setattr(task, "predict", watched)
    monkeypatch.setattr(task, "evaluate", lambda self, model, batches: predict(self, model, batches).metrics)
    run_recipe(signs())
    assert seen == [len(data(task(), "test"))] * 3


def test_each_evaluation_is_of_the_same_sample(signs, monkeypatch):
    task, seen = kdplug.tasks.load("signs"), []
    predict = task.predict

    def evaluate(self, model, batches):
        batches = list(batches)
        seen.append(torch.cat([batch[0] for batch in batches]))
        return predict(self, model, batches).metrics

    recipe = signs("training.evaluation_examples=7", "training.evaluations=3", "controls=[]")
    runner = RecipeRunner(recipe, build_task(recipe)[1], print, show_progress=False)
    monkeypatch.setattr(task, "evaluate", evaluate)
    runner.distilled(runner.teacher())
    whole = runner.task.data("validation")
    assert len(seen) == 3
    assert all(torch.equal(one, seen[0]) for one in seen)
    assert len(seen[0]) == 7
    assert all(any(torch.equal(row, other) for other in whole) for row in seen[0])


def test_the_students_of_a_seed_start_from_the_same_weights_and_those_of_others_do_not(signs, monkeypatch):
    starts, usual = [], RecipeRunner.student

    def student(self, teacher):
        made = usual(self, teacher)
        starts.append((self.seed, made.weight.detach().clone()))
        return made

    monkeypatch.setattr(RecipeRunner, "student", student)
    monkeypatch.setattr("kdplug.recipes.run.rehearse", lambda runner: None)
    run_recipe(signs("seeds=[4, 7]"))
    of = {seed: [weight for own, weight in starts if own == seed] for seed in (4, 7)}
    assert all(torch.equal(one, of[seed][0]) for seed in of for one in of[seed][:2])
    assert not torch.equal(of[4][0], of[7][0])


def test_a_student_ends_with_the_weights_of_its_best_evaluation(signs, monkeypatch):
    task, values = kdplug.tasks.load("signs"), iter([0.2, 0.9, 0.4])
    recipe = signs("training.evaluations=3", "controls=[]")
    runner = RecipeRunner(recipe, build_task(recipe)[1], print, show_progress=False)
    monkeypatch.setattr(task, "evaluate", lambda *_: {"accuracy": next(values), "error": 0.0})
    trained = runner.distilled(runner.teacher())
    assert (trained.steps, trained.best_step) == (6, 4)
    monkeypatch.undo()
    stopped = signs(
        "training.num_epochs=null",
        "training.num_steps=4",
        "training.evaluations=0",
        f"output_dir={recipe.output_dir}/b",
    )
    other = RecipeRunner(stopped, runner.task, print, show_progress=False)
    assert torch.equal(trained.model.weight, other.distilled(other.teacher()).model.weight)


def test_early_stopping_ends_a_run_and_resuming_does_not_go_on(signs, monkeypatch):
    task = kdplug.tasks.load("signs")
    recipe = signs("training.evaluations=6", "training.early_stopping=2", "controls=[]")
    runner = RecipeRunner(recipe, build_task(recipe)[1], print, show_progress=False)
    monkeypatch.setattr(task, "evaluate", lambda *_: {"accuracy": 0.5})
    trained = runner.distilled(runner.teacher())
    assert (trained.steps, trained.best_step) == (3, 1)
    again = RecipeRunner(recipe, runner.task, print, show_progress=False, resume=True)
    assert (again.distilled(again.teacher()).steps, trained.best_step) == (3, 1)


def test_the_files_hold_every_seed_and_arm(signs):
    recipe = signs("seeds=3")
    result = run_recipe(recipe)
    found = metrics_of(recipe)
    assert found["seeds"] == [0, 1, 2]
    assert {arm: len(found["arms"][arm]["runs"]) for arm in found["arms"]} == {
        "teacher": 1,
        "no_teacher": 3,
        "distilled": 3,
    }
    assert found["verdict"]["seeds"] == 3
    assert found["parts"] == {"distillation": 40, "baseline": 6, "validation": 50, "test": 100}
    rows = [json.loads(line) for line in (result.output_dir / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 7 * 100
    assert {(row["arm"], row["seed"]) for row in rows} == {
        ("teacher", 0), *((arm, seed) for arm in ("no_teacher", "distilled") for seed in range(3)),
    }  # fmt: skip
    assert (result.output_dir / "report.html").is_file()


def test_several_seeds_give_the_runs_that_each_seed_gives_alone(signs, tmp_path):
    together = signs("seeds=2")
    run_recipe(together)
    alone = signs("seed=1", f"output_dir={tmp_path}/alone")
    run_recipe(alone)
    for arm in ("no_teacher", "distilled"):
        one, other = (
            (Path(recipe.output_dir) / "seed-1" / arm / name).read_bytes()
            for name in ("predictions.jsonl",)
            for recipe in (together, alone)
        )
        assert one == other


def test_the_teachers_outputs_are_stored_once_for_all_seeds(signs, monkeypatch):
    calls = []

    class Counted(torch.nn.Linear):
        def forward(self, batch):
            calls.append(len(batch))
            return super().forward(batch)

    monkeypatch.setattr(kdplug.tasks.load("signs"), "build_teacher", lambda self: Counted(4, 2))
    monkeypatch.setattr(
        "kdplug.recipes.run.RecipeRunner.measured", lambda self, *models: [Figures(1, 1.0, 1, 1.0)] * len(models)
    )
    recipe = signs("seeds=3")
    monkeypatch.setattr("kdplug.recipes.run.ArmsRun.may_share_cache", lambda *_: True)
    monkeypatch.setattr("kdplug.recipes.run.rehearse", lambda runner: runner)
    run_recipe(recipe)
    evaluated = 100 + 1 + 50 + 1  # test and validation, and an example of each that is measured
    assert (
        sum(calls) <= evaluated + 40 + 2 * 16
    )  # one pass, and batches that find out whether the outputs can be stored
    assert (Path(recipe.output_dir) / "teacher-cache" / "manifest.json").is_file()


def test_no_control_is_said(signs):
    recipe = signs("controls=[]")
    text, error = printed(recipe)
    assert error is None
    assert "No verdict: the recipe trains no student without distillation" in text
    assert list(metrics_of(recipe)["arms"]) == ["teacher", "distilled"]
    assert metrics_of(recipe)["verdict"] is None


def test_one_seed_cannot_tell(signs):
    text, _ = printed(signs("training.lr=0.1"))
    assert "CANNOT TELL distilled from no_teacher: there is only 1 seed, and a verdict needs 3 or more" in text


def test_a_control_that_fails_loses_nothing_else(signs, monkeypatch):
    usual = RecipeRunner.no_teacher

    def fails(self, teacher):
        if self.seed == 1:
            raise ValueError("out of luck")
        return usual(self, teacher)

    monkeypatch.setattr(RecipeRunner, "no_teacher", fails)
    recipe = signs("seeds=2")
    text, error = printed(recipe)
    assert (
        "Warning: student, without distillation, seed 1 failed, and the other arms continue: ValueError: out of luck"
        in text
    )
    assert isinstance(error, ControlError)
    found = metrics_of(recipe)
    assert [run["seed"] for run in found["arms"]["distilled"]["runs"]] == [0, 1]
    assert [run["seed"] for run in found["arms"]["no_teacher"]["runs"]] == [0]
    assert found["verdict"]["seeds"] == 1
    assert list(found["failed"]) == ["student, without distillation, seed 1"]
    monkeypatch.undo()
    assert len(run_recipe(recipe, resume=True).no_teacher.runs) == 2


def test_a_teacher_that_is_worse_is_said_before_distillation_and_in_the_verdict(signs, monkeypatch):
    task = kdplug.tasks.load("signs")

    def bad_teacher(self):
        teacher = torch.nn.Linear(4, 2)
        teacher.weight.data = torch.tensor([[1.0], [-1.0]]).expand(2, 4).clone()
        return teacher

    monkeypatch.setattr(task, "build_teacher", bad_teacher)
    recipe = signs("training.lr=0.1", "training.num_epochs=10")
    text, _ = printed(recipe)
    assert (
        "Warning: on the validation part the teacher is worse than the student trained without it: accuracy 0." in text
    )
    assert text.index("Warning: on the validation part the teacher is worse") < text.index("Distilling the student")
    assert "On the validation part the teacher was worse than the student trained without it" in text
    assert metrics_of(recipe)["teacher_worse"] is True


def test_a_worse_teacher_is_reported_without_evaluations_too(signs, monkeypatch):
    def bad_teacher(self):
        teacher = torch.nn.Linear(4, 2)
        teacher.weight.data = torch.tensor([[1.0], [-1.0]]).expand(2, 4).clone()
        return teacher

    monkeypatch.setattr(kdplug.tasks.load("signs"), "build_teacher", bad_teacher)
    recipe = signs("training.lr=0.1", "training.num_epochs=10", "training.evaluations=0")
    text, _ = printed(recipe)
    assert "On the test part the teacher was worse than the student trained without it" in text
    assert metrics_of(recipe)["teacher_worse"] is True
    page = (Path(recipe.output_dir) / "report.html").read_text(encoding="utf-8")
    assert "On the test part the teacher is worse" in page


def test_a_metric_that_is_nan_is_said_and_nothing_is_lost(signs, monkeypatch):
    task = kdplug.tasks.load("signs")

    def predict(self, model, batches):
        rows = [{"score": math.nan} for batch in batches for _ in batch[0]]
        return kdplug.Predictions({"accuracy": math.nan}, rows)

    monkeypatch.setattr(task, "predict", predict)
    recipe = signs("seeds=3")
    text, error = printed(recipe)
    assert error is None
    assert "CANNOT TELL distilled from no_teacher: " in text
    assert "not finite" in text
    assert metrics_of(recipe)["arms"]["distilled"]["metrics"] == {"accuracy": None}
    assert (Path(recipe.output_dir) / "student.safetensors").is_file()


def test_a_test_part_of_one_example_cannot_tell(signs, monkeypatch):
    task = kdplug.tasks.load("signs")
    usual = task.data
    monkeypatch.setattr(task, "data", lambda self, part: usual(self, part)[: 1 if part == "test" else None])
    text, error = printed(signs("seeds=3"))
    assert error is None
    assert "CANNOT TELL distilled from no_teacher: the test set has only one independent unit" in text


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_validation_part_that_is_empty_or_missing_is_an_error_before_training(signs, monkeypatch, is_empty):
    task = kdplug.tasks.load("signs")
    usual = task.data

    def data(self, part):
        if part == "validation" and not is_empty:
            raise KeyError(part)
        return usual(self, part)[: 0 if part == "validation" else None]

    monkeypatch.setattr(task, "data", data)
    with pytest.raises((RunError, ConfigError), match=r"validation.*training.evaluations to 0"):
        run_recipe(signs())
    assert not Path(signs().output_dir).exists()
    run_recipe(signs("training.evaluations=0"))


def test_an_unknown_metric_is_an_error_before_training(signs, fitted, tmp_path):
    with pytest.raises(
        ConfigError, match=r"metric: the task has no metric 'acuracy'. Did you mean 'accuracy'.*accuracy, error"
    ):
        run_recipe(signs("metric=acuracy"))
    assert not (tmp_path / "out" / "teacher").exists()


def test_another_metric_of_the_task_ranks_in_its_own_direction(signs):
    recipe = signs("metric=error", "training.num_epochs=10", "training.lr=0.1")
    text, _ = printed(recipe)
    found = metrics_of(recipe)
    assert (found["metric"], found["is_lower_better"]) == ("error", True)
    assert "error (lower is better)" in text
    assert "the task returns scores of each example for its main metric, not for error" in text


def test_another_metric_has_an_interval_over_seeds_and_no_verdict(signs):
    recipe = signs("metric=error", "seeds=3")
    run_recipe(recipe)
    found = metrics_of(recipe)
    verdict, runs = found["verdict"], {arm: found["arms"][arm]["runs"] for arm in ("distilled", "no_teacher")}
    differences = [
        other["metrics"]["error"] - one["metrics"]["error"]
        for one, other in zip(runs["distilled"], runs["no_teacher"], strict=True)
    ]
    half = stats.sem(differences) * stats.t.ppf(0.975, 2)
    assert verdict["outcome"] == "CANNOT TELL"
    assert verdict["seed_interval"] == pytest.approx([mean(differences) - half, mean(differences) + half])
    assert verdict["unit_interval"] is None
    assert found["aggregate"] is None


@pytest.fixture
def with_macro_f1(monkeypatch):
    """The task also returns macro F1."""
    task = kdplug.tasks.load("signs")
    predict = task.predict

    def both(self, model, batches):
        found = predict(self, model, batches)
        sides = ([row[key] for row in found.rows] for key in ("label", "prediction"))
        macro = f1_score(*sides, average="macro", zero_division=0)
        return Predictions({**found.metrics, "macro_f1": macro}, found.rows)

    monkeypatch.setattr(task, "predict", both)


def test_macro_f1_has_a_verdict_and_the_command_agrees(signs, with_macro_f1):
    recipe = signs("metric=macro_f1", "seeds=3", "margin=0.1")
    text, _ = printed(recipe)
    found = metrics_of(recipe)
    assert found["aggregate"] == "macro_f1"
    assert "no verdict" not in text
    for interval in ("seed_interval", "unit_interval", "interval"):
        assert found["verdict"][interval] is not None
    means = [found["arms"][arm]["metrics"]["macro_f1"] for arm in ("distilled", "no_teacher")]
    assert found["verdict"]["means"] == pytest.approx(means)
    done = CliRunner().invoke(app, ["verdict", recipe.output_dir, "--margin", "0.1", "--json"])
    assert json.loads(done.output) == found["verdict"]


def test_a_metric_called_macro_f1_that_is_another_one_has_no_verdict(signs, with_macro_f1, monkeypatch):
    task = kdplug.tasks.load("signs")
    predict = task.predict

    def scaled(self, model, batches):
        found = predict(self, model, batches)
        return Predictions({**found.metrics, "macro_f1": found.metrics["macro_f1"] / 2}, found.rows)

    monkeypatch.setattr(task, "predict", scaled)
    recipe = signs("metric=macro_f1", "seeds=3")
    run_recipe(recipe)
    found = metrics_of(recipe)
    assert (found["aggregate"], found["verdict"]["unit_interval"]) == (None, None)
    assert "not for macro_f1" in found["verdict"]["reason"]
    done = CliRunner().invoke(app, ["verdict", recipe.output_dir])
    assert done.exit_code != 0
    assert "no scores for the run's metric 'macro_f1'" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([0, 1, 1], "seeds: contains 1 more than once"),
        ([], "seeds: must be a number of seeds"),
        (0, "seeds: must be a number of seeds"),
        (True, "seeds: must be a number of seeds"),
        ([0, -1], r"seeds\.1: must be a whole number from 0"),
        (1001, "seeds: must be a number of seeds"),
    ],
)
def test_seeds_that_are_none_are_refused(seeds, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict({"task": "digits", "distillation": {}, "training": {"num_epochs": 1}, "seeds": seeds})


@pytest.mark.parametrize(("seeds", "expected"), [(None, (5,)), (3, (5, 6, 7)), ([2, 0], (2, 0))])
def test_seeds_are_counted_from_the_seed_or_named(seeds, expected):
    data = {"task": "digits", "distillation": {}, "training": {"num_epochs": 1}, "seed": 5, "seeds": seeds}
    assert Recipe.from_dict(data).student_seeds == expected


@pytest.mark.parametrize("key", ["early_stopping", "evaluation_examples"])
def test_a_key_of_evaluations_needs_evaluations(signs, key):
    with pytest.raises(ConfigError, match=f"training.{key}: has no effect: evaluations is 0"):
        signs("training.evaluations=0", f"training.{key}=3")


def test_seeds_added_on_resume_are_marked_and_the_others_are_not_repeated(signs, monkeypatch):
    first = signs("seeds=2")
    run_recipe(first)
    before = (Path(first.output_dir) / "seed-0" / "distilled" / "predictions.jsonl").read_bytes()
    more = signs("seeds=3")
    text, _ = printed(more, resume=True)
    assert "Already complete: student, distilled, seed 1" in text
    assert "Seeds were added after results of this run were known" in text
    assert metrics_of(more)["seeds_added"] is True
    assert (Path(first.output_dir) / "seed-0" / "distilled" / "predictions.jsonl").read_bytes() == before


def test_seeds_are_not_left_out_on_resume(signs):
    run_recipe(signs("seeds=3"))
    with pytest.raises(ConfigError, match="seeds: must include 2, as in the run in"):
        run_recipe(signs("seeds=2"), resume=True)


def test_an_entry_of_this_process_only_has_no_jobs(signs):
    with pytest.raises(ConfigError, match="jobs: is 2, but local:signs is registered in this process only"):
        run_recipe(signs("seeds=2"), jobs=2)


def test_one_seed_that_is_better_than_the_teacher_does_not_make_the_teacher_worse():
    values = {ArmRun(Arm.TEACHER, 0): 0.7} | {
        ArmRun(Arm.NO_TEACHER, seed): value for seed, value in enumerate((0.8, 0.65, 0.6))
    }
    runs = {run: SimpleNamespace(arm=run.arm, validation={"m": value}) for run, value in values.items()}
    teacher = runs[ArmRun(Arm.TEACHER, 0)]
    assert better_control(MetricOf("m", is_lower_better=False, is_own=True), runs, teacher) is None
    assert better_control(MetricOf("m", is_lower_better=True, is_own=True), runs, teacher) == pytest.approx(2.05 / 3)


def test_predictions_without_scores_for_the_metric_of_the_run_give_no_verdict(signs, tmp_path):
    recipe = signs("seeds=3", "metric=error")
    text, error = printed(recipe)
    assert error is None
    assert (
        "Warning: metric: the task scores examples for accuracy only, so there will be an interval over seeds" in text
    )
    assert metrics_of(recipe)["aggregate"] is None
    result = CliRunner().invoke(app, ["verdict", recipe.output_dir])
    assert result.exit_code == 2
    assert "no scores for the run's metric 'error'" in result.stderr


def test_scores_that_do_not_give_the_metric_give_no_verdict(signs, monkeypatch):
    task = kdplug.tasks.load("signs")
    usual = task.predict

    def predict(self, model, batches):
        found = usual(self, model, batches)
        return kdplug.Predictions(found.metrics, [{**row, "score": 1 - row["score"]} for row in found.rows])

    monkeypatch.setattr(task, "predict", predict)
    monkeypatch.setattr(task, "evaluate", lambda self, model, batches: usual(self, model, batches).metrics)
    recipe = signs("seeds=3", "training.lr=0.1")
    text, error = printed(recipe)
    assert error is None
    assert (
        "CANNOT TELL distilled from no_teacher: the scores in the task's predictions do not give its accuracy" in text
    )
    assert metrics_of(recipe)["aggregate"] is None


def test_starting_over_with_another_teacher_stores_its_outputs_again(signs, monkeypatch):
    run_recipe(signs("seeds=2"))
    first = (Path(signs().output_dir) / "teacher-cache" / "manifest.json").read_bytes()
    build = kdplug.tasks.load("signs").build_teacher

    def other(self):
        teacher = build(self)
        teacher.weight.data *= 2
        return teacher

    monkeypatch.setattr(kdplug.tasks.load("signs"), "build_teacher", other)
    text, _ = printed(signs("seeds=2"), overwrite=True)
    assert "stored once for all seeds" in text
    assert (Path(signs().output_dir) / "teacher-cache" / "manifest.json").read_bytes() != first
