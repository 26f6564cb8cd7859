"""The control ``shuffled`` of a recipe: training, refusals, results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import kdplug
from kdplug.errors import ConfigError
from kdplug.recipes.arm import Arm
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.run import ControlError, run_recipe

BOTH = 'controls=["no_teacher","shuffled"]'


def weights(recipe, arm, seed=0):
    folder = Path(recipe.output_dir) / f"seed-{seed}" / arm
    step = max(folder.glob("step-*"), key=lambda path: int(path.name.partition("-")[2]))
    return load_file(step / "student.safetensors")


def are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def results_of(recipe):
    return json.loads((Path(recipe.output_dir) / "metrics.json").read_text())


@pytest.fixture
def by_class(monkeypatch):
    """The teacher's output depends on its predicted class alone."""
    task = kdplug.tasks.load("signs")

    def adaptor(self, batch, outputs):
        return {"logits": torch.tensor([[3.0, -1.0], [-2.0, 2.0]])[outputs.argmax(-1)]}

    monkeypatch.setattr(task, "teacher_adaptor", adaptor)


def test_with_a_teacher_that_knows_only_the_class_shuffled_and_distilled_are_equal_bit_for_bit(signs, by_class):
    recipe = signs('controls=["shuffled"]', "training.best_checkpoint=false")
    run_recipe(recipe)
    assert are_equal(weights(recipe, "shuffled"), weights(recipe, "distilled"))
    arms = results_of(recipe)["arms"]
    assert arms["shuffled"]["metrics"] == arms["distilled"]["metrics"]


def test_with_other_teachers_they_differ_and_the_gain_is_no_verdict(signs):
    recipe = signs(BOTH, "seeds=3")
    found = run_recipe(recipe, console=Console(quiet=True))
    results = results_of(recipe)
    assert not are_equal(weights(recipe, "shuffled"), weights(recipe, "distilled"))
    assert list(results["arms"]) == ["teacher", "no_teacher", "distilled", "shuffled"]
    assert results["example_level"]["means"] == [
        pytest.approx(results["arms"][arm]["metrics"]["accuracy"]) for arm in ("distilled", "shuffled")
    ]
    assert results["verdict"]["means"][1] == pytest.approx(results["arms"]["no_teacher"]["metrics"]["accuracy"])
    assert [one["singletons"] for one in results["arms"]["shuffled"]["runs"]] == pytest.approx([0, 0, 0], abs=0.1)
    lines = list(found.compared.lines(has_control=True, seeds_added=False))
    (gain,) = [line for line in lines if line.startswith("Gain from example-level knowledge")]
    assert not any(word in gain for word in ("BEATS", "LOSES", "CANNOT"))
    assert any("shuffled" in line and "only one of their predicted class" in line for line in lines)
    lines = (Path(recipe.output_dir) / "predictions.jsonl").read_text().splitlines()
    arms = {json.loads(line)["arm"] for line in lines}
    assert arms == set(Arm)
    page = (Path(recipe.output_dir) / "report.html").read_text()
    assert "shuffled teacher" in page


@pytest.mark.parametrize("changes", [("seeds=2",), ("training.gradient_accumulation_steps=3",)])
def test_a_cache_and_accumulation_change_nothing(signs, tmp_path, changes):
    live = signs('controls=["shuffled"]', *changes[1:], f"output_dir={tmp_path / 'live'}", *changes)
    cached = live.with_overrides([f"training.teacher_cache={tmp_path / 'cache'}", f"output_dir={tmp_path / 'cached'}"])
    one = live.with_overrides(["seeds=1"])
    run_recipe(one)
    run_recipe(cached)
    for arm in ("shuffled", "distilled"):
        assert are_equal(weights(one, arm), weights(cached, arm))


def test_it_works_from_a_cache_without_a_teacher(signs, tmp_path, monkeypatch):
    from kdplug.recipes.cache import cache_recipe

    recipe = signs('controls=["shuffled"]')
    run_recipe(recipe)
    cache_recipe(recipe, tmp_path / "cache")

    def gone(self):
        raise AssertionError("the teacher is not needed")

    monkeypatch.setattr(kdplug.tasks.load("signs"), "build_teacher", gone)
    again = recipe.with_overrides([f"training.teacher_cache={tmp_path / 'cache'}", f"output_dir={tmp_path / 'again'}"])
    run_recipe(again)
    assert are_equal(weights(recipe, "shuffled"), weights(again, "shuffled"))


def test_an_interrupted_run_resumes_to_equal_bits(signs, tmp_path, monkeypatch):
    task = kdplug.tasks.load("signs")
    recipe = signs('controls=["shuffled"]', "training.ckpt_frequency=3")
    run_recipe(recipe)
    other = recipe.with_overrides([f"output_dir={tmp_path / 'killed'}"])
    collate, calls = task.collate, []

    def dying(self, examples):
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return collate(self, examples)

    monkeypatch.setattr(task, "collate", dying)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(other)
    assert not (Path(other.output_dir) / "seed-0" / "distilled").exists()
    monkeypatch.setattr(task, "collate", collate)
    run_recipe(other, resume=True)
    for arm in ("shuffled", "distilled"):
        assert are_equal(weights(recipe, arm), weights(other, arm))
    one, again = (results_of(run)["arms"]["shuffled"] for run in (recipe, other))
    assert one["metrics"] == again["metrics"]
    assert one["runs"][0]["singletons"] == again["runs"][0]["singletons"]


def test_too_many_singletons_are_refused_before_any_student_is_trained(signs, monkeypatch):
    recipe = signs(BOTH, "training.batch_size=2")
    with pytest.raises(
        ConfigError, match=r"controls: cannot contain shuffled: in the first batches of 2 examples, \d+%"
    ):
        run_recipe(recipe)
    assert not list(Path(recipe.output_dir).glob("seed-*/*"))
    with pytest.raises(ConfigError, match=r"Increase training\.batch_size, or remove shuffled from controls"):
        plan_recipe(recipe)


def test_a_plan_prices_it(signs):
    plan = plan_recipe(signs(BOTH, "seeds=3"))
    assert plan.steps["shuffled"] == plan.steps["distilled"]
    assert plan.total_steps == 9 * plan.steps["distilled"]


def test_a_task_that_generates_batches_is_refused(signs, monkeypatch):
    task = kdplug.tasks.load("signs")
    monkeypatch.setattr(task, "prepares_batches", True, raising=False)
    monkeypatch.setattr(task, "prepare_batch", lambda self, batch, student: batch, raising=False)
    with pytest.raises(ConfigError, match="generates batches with the student"):
        plan_recipe(signs('controls=["shuffled"]'))


def test_a_failing_one_is_named_and_the_others_are_written(signs, monkeypatch):
    calls = []

    def late(share, batch_size):
        calls.append(share)
        if len(calls) == 2:
            raise ConfigError("too many", field="controls")

    monkeypatch.setattr("kdplug.recipes.recipe_runner.check_share", late)
    recipe = signs(BOTH)
    with pytest.raises(ControlError, match="shuffled teacher, seed 0: ConfigError: controls: too many"):
        run_recipe(recipe)
    results = results_of(recipe)
    assert "shuffled" not in results["arms"]
    assert results["example_level"] is None
