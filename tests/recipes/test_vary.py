"""``vary: [teacher]``: a teacher for each seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kdplug
from kdplug import Recipe
from kdplug.errors import ConfigError
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import run_recipe


def weights(folder):
    step = max(folder.glob("step-*"), key=lambda path: int(path.name.partition("-")[2]))
    return load_file(step / "student.safetensors")


def are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def fitted(signs, monkeypatch):
    """The recipe trains the task's teacher; returns the recipe's factory."""
    task = kdplug.tasks.load("signs")
    monkeypatch.setattr(task, "build_teacher", lambda self: nn.Linear(4, 2))
    monkeypatch.setattr(task, "teacher_fit", lambda self: {"epochs": 2, "batch_size": 8, "learning_rate": 0.1})
    monkeypatch.setattr(task, "teacher_adaptor", task.student_adaptor)
    return lambda *changes: signs("vary=[teacher]", *changes)


def test_each_seed_has_the_teacher_and_the_students_of_a_recipe_with_that_seed_alone(fitted, tmp_path):
    recipe = fitted("seeds=[1,2]", "training.best_checkpoint=false")
    run_recipe(recipe)
    root = Path(recipe.output_dir)
    assert not (root / "teacher").exists()
    assert not are_equal(weights(root / "seed-1" / "teacher"), weights(root / "seed-2" / "teacher"))
    for seed in (1, 2):
        alone = recipe.with_overrides(["seeds=null", "vary=[]", f"seed={seed}", f"output_dir={tmp_path / str(seed)}"])
        run_recipe(alone)
        assert are_equal(weights(root / f"seed-{seed}" / "teacher"), weights(Path(alone.output_dir) / "teacher"))
        for arm in ("no_teacher", "distilled"):
            folder = Path("seed-" + str(seed)) / arm
            assert are_equal(weights(root / folder), weights(Path(alone.output_dir) / folder))
        assert (root / f"seed-{seed}" / "teacher-cache" / "manifest.json").is_file()


def test_the_results_hold_a_run_of_the_teacher_for_each_seed(fitted, capsys):
    recipe = fitted("seeds=3")
    result = run_recipe(recipe)
    found = json.loads((Path(recipe.output_dir) / "metrics.json").read_text())
    assert found["vary"] == ["teacher"]
    assert [run["seed"] for run in found["arms"]["teacher"]["runs"]] == [0, 1, 2]
    assert "accuracy" in found["arms"]["teacher"]["sd"]
    assert found["agreement"]["teacher_right"] is not None
    assert len(result.teacher.runs) == 3
    page = (Path(recipe.output_dir) / "report.html").read_text()
    assert "each seed has its own teacher" in page


def test_an_interrupted_run_resumes_to_the_same_results_and_completes_nothing_twice(fitted, tmp_path, monkeypatch):
    whole = fitted("seeds=2")
    run_recipe(whole)
    other = whole.with_overrides([f"output_dir={tmp_path / 'killed'}"])
    task = kdplug.tasks.load("signs")
    predict, calls = task.predict, []

    def dying(self, model, batches):
        calls.append(1)
        if len(calls) > 18:
            raise KeyboardInterrupt
        return predict(self, model, batches)

    monkeypatch.setattr(task, "predict", dying)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(other)
    monkeypatch.setattr(task, "predict", predict)
    run_recipe(other, resume=True)
    names = ("predictions.jsonl", "seed-1/distilled/history.jsonl", "student.safetensors")
    for name in names:
        assert (Path(whole.output_dir) / name).read_bytes() == (Path(other.output_dir) / name).read_bytes()


def test_a_loaded_teacher_cannot_vary(signs):
    with pytest.raises(
        ConfigError, match=r"vary: contains teacher, but the recipe does not train its teacher: task 'signs'"
    ):
        plan_recipe(signs("vary=[teacher]"))


def test_the_cache_of_one_teacher_cannot_hold_several(fitted):
    with pytest.raises(
        ConfigError, match=r"vary: contains teacher, but training\.teacher_cache holds the outputs of a single"
    ):
        fitted("training.teacher_cache=cache")


def test_a_plan_prices_each_teacher(fitted):
    plan, one = plan_recipe(fitted("seeds=3")), plan_recipe(fitted("seeds=3", "vary=[]"))
    assert plan.total_steps - one.total_steps == 2 * plan.steps["teacher"]
    assert plan.shared_cache == 3 * one.shared_cache


def test_starting_over_forgets_the_teachers(fitted):
    recipe = fitted("seeds=2")
    run_recipe(recipe)
    before = weights(Path(recipe.output_dir) / "seed-1" / "teacher")
    again = recipe.with_overrides(["training.num_epochs=1", "seed=5"])
    run_recipe(again, overwrite=True)
    assert not are_equal(before, weights(Path(again.output_dir) / "seed-6" / "teacher"))
    assert not list((Path(again.output_dir) / "seed-1" / "teacher").glob("step-*"))
    assert not (Path(again.output_dir) / "seed-1" / "teacher-cache").exists()


DIGITS = Path(__file__).parents[2] / "examples" / "digits.yaml"


def test_worker_processes_give_the_same_results_to_the_bit(tmp_path):
    small = ["training.num_epochs=1", "training.device=cpu", "task.teacher_epochs=1", "task.labels_per_class=20"]
    recipes = [
        Recipe.from_file(DIGITS).with_overrides(
            [*small, "seeds=2", "vary=[teacher]", f"output_dir='{tmp_path / name}'"]
        )
        for name in ("one", "two")
    ]
    run_recipe(recipes[0])
    run_recipe(recipes[1], jobs=2)
    for name in ("predictions.jsonl", "student.safetensors", "seed-1/distilled/history.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
