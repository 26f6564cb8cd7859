"""What a model is worth and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import kdplug
from kdplug.recipes.result import count_parameters, evaluate, measure_speed, rounds_for


def test_evaluating_leaves_modes_and_the_global_generator_as_they_were(signs):
    task = kdplug.tasks.build(signs().task).target
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)).train()
    loader = DataLoader(task.data("test"), collate_fn=task.collate, generator=torch.Generator())
    state = torch.get_rng_state()
    evaluate(task, model, loader)
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
    evaluate(task, Probe(4, 2), DataLoader(task.data("test"), collate_fn=task.collate, batch_size=100))
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
