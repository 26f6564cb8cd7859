"""What a model is worth and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import kdplug
from kdplug.recipes import measure
from kdplug.recipes.measure import count_parameters, eval_batch_size, eval_bytes, evaluate, measure_speed, rounds_for
from kdplug.recipes.preview.plan import plan_recipe
from kdplug.recipes.recipe_runner import RecipeRunner


def test_evaluating_leaves_modes_and_the_global_generator_as_they_were(signs):
    task = kdplug.tasks.build(signs().task).target
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)).train()
    loader = DataLoader(task.data("test"), collate_fn=task.collate, generator=torch.Generator())
    state = torch.get_rng_state()
    evaluate(task, model, loader, "accuracy")
    assert model.training
    assert model[1].training
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluating_is_done_in_eval_mode_without_gradient(signs):
    seen = []

    class Probe(nn.Linear):
        def forward(self, value):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(value)

    task = kdplug.tasks.build(signs().task).target
    evaluate(task, Probe(4, 2), DataLoader(task.data("test"), collate_fn=task.collate, batch_size=100), "accuracy")
    assert seen == [(False, False)]


def test_a_parameter_in_two_places_counts_once():
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 12


def test_every_model_takes_some_time(signs):
    task = kdplug.tasks.build(signs().task).target
    loader = DataLoader(task.data("test"), collate_fn=task.collate, batch_size=10)
    times = [one.seconds_per_example for one in measure_speed(task, [nn.Linear(4, 2), nn.Linear(4, 2)], loader)]
    assert len(times) == 2
    assert min(times) > 0


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-3, 15), (0.5, 10), (2.0, 3), (60.0, 3)])
def test_a_slow_model_is_measured_in_fewer_rounds(seconds, rounds):
    assert rounds_for(seconds) == rounds


@pytest.mark.parametrize(
    ("example", "size"), [(0, 256), (1 << 20, 256), (5 << 20, 128), (155_000_000, 4), (1 << 40, 1)]
)
def test_an_evaluation_takes_batches_whose_outputs_fit_a_gibibyte(example, size):
    assert eval_batch_size(example) == size
    assert size in (1, 256) or size * example <= 1 << 30 < 2 * size * example


def test_the_outputs_of_the_longest_example_are_measured():
    class Task:
        def collate(self, examples):
            return (torch.stack(examples),)

    class Wide(nn.Linear):
        def forward(self, value):
            return {"logits": value.unsqueeze(-1) * self.weight[0], "hidden": (value, value)}

    data = [torch.zeros(length) for length in (2, 7, 3)]
    assert eval_bytes(Task(), Wide(100, 1), data) == 4 * 7 * (100 + 2)


def _sizes(recipe):
    """The sizes of the batches in which a model is evaluated."""
    runner = RecipeRunner(recipe, kdplug.tasks.build(recipe.task).target, lambda _: None, show_progress=False)
    return [runner.evaluation_loader(part, nn.Linear(4, 2)).batch_size for part in ("validation", "test")]


def test_a_run_evaluates_and_a_plan_counts_in_batches_that_fit(signs, monkeypatch):
    monkeypatch.setattr(measure, "EVAL_BYTES", 9 * 8)
    assert _sizes(signs()) == [8, 8]
    assert _sizes(signs("training.eval_batch_size=5")) == [5, 5]
    plan = plan_recipe(signs())
    assert (plan.eval_batch_size, plan.evaluation.bytes) == (8, 64)
    assert plan.to_data()["evaluation"]["bytes"] == 64
    assert plan_recipe(signs("training.eval_batch_size=5")).evaluation.bytes == 40
