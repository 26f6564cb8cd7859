"""Learning rates over a run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdplug.config.recipe import RecipeTraining
from kdplug.errors import ConfigError
from kdplug.recipes.training import factor, make_optimizer, make_schedule

SCHEDULES = st.sampled_from(["none", "linear", "cosine"])
WARMUPS = st.floats(0, 0.9)
STEPS = st.integers(1, 500)


@given(SCHEDULES, WARMUPS, STEPS)
def test_a_learning_rate_is_never_negative_and_never_above_the_one_asked_for(schedule, warmup, total):
    rates = [factor(step, schedule=schedule, warmup=warmup, total_steps=total) for step in range(total + 2)]
    assert all(0 <= rate <= 1 for rate in rates)


@given(SCHEDULES, WARMUPS, STEPS)
def test_a_learning_rate_rises_during_warmup_and_never_after(schedule, warmup, total):
    rates = [factor(step, schedule=schedule, warmup=warmup, total_steps=total) for step in range(total + 1)]
    peak = round(warmup * total)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_falling_learning_rate_ends_at_zero(schedule):
    assert factor(100, schedule=schedule, warmup=0.1, total_steps=100) == pytest.approx(0, abs=1e-12)


def test_a_learning_rate_without_schedule_or_warmup_needs_no_scheduler():
    assert make_schedule(RecipeTraining(num_steps=3), 3) == {}


def test_an_optimizer_that_does_not_exist_is_an_error_that_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"training.optimizer: torch.optim has no optimizer 'adamw'.*Did you mean 'AdamW'"
    ):
        make_optimizer(RecipeTraining(num_steps=3, optimizer="adamw"), nn.Linear(1, 1).parameters())


def test_an_optimizer_gets_rate_and_decay_from_the_recipe():
    training = RecipeTraining(num_steps=3, optimizer="SGD", lr=0.25, weight_decay=0.5)
    (group,) = make_optimizer(training, nn.Linear(1, 1).parameters()).param_groups
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.5)
