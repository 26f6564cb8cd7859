"""How long a run is, and when it saves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdplug.config.training import TrainingConfig
from kdplug.engine.run import make_plan
from kdplug.errors import ConfigError, RunError


def saves(batches, *, num_epochs=None, num_steps=None, **config):
    plan = make_plan(range(batches), TrainingConfig(**config), num_epochs=num_epochs, num_steps=num_steps)
    return [step for step in range(1, plan.total_steps + 1) if plan.is_save(step)]


def total(batches, num_epochs, accumulation=1):
    return make_plan(
        range(batches), TrainingConfig(gradient_accumulation_steps=accumulation), num_epochs=num_epochs
    ).total_steps


def test_ten_steps_and_three_checkpoints_an_epoch_save_at_3_6_and_10():
    assert saves(10, num_epochs=1, ckpt_frequency=3) == [3, 6, 10]


def test_a_frequency_of_0_never_saves():
    assert saves(4, num_epochs=2, ckpt_frequency=0) == []


def test_a_frequency_above_the_steps_of_an_epoch_saves_every_step():
    assert saves(3, num_epochs=1, ckpt_frequency=10) == [1, 2, 3]


def test_only_every_nth_epoch_and_the_last_one_save():
    assert saves(2, num_epochs=5, ckpt_epoch_frequency=2) == [4, 8, 10]


def test_half_an_epoch_too_many_still_ends_with_a_checkpoint():
    """Weakness 2.3: 2.5 epochs ran 2, and with ckpt_epoch_frequency=5 saved nothing at all."""
    assert saves(4, num_epochs=2.5, ckpt_epoch_frequency=5)[-1] == 10


@given(n=st.integers(1, 40), epochs=st.integers(1, 5), frequency=st.integers(1, 50), epoch_frequency=st.integers(1, 6))
def test_whole_epochs_save_where_textbrewer_does(n, epochs, frequency, epoch_frequency):
    points = [int(n * i / frequency) for i in range(frequency)]
    expected = [
        step
        for step in range(1, n * epochs + 1)
        for epoch in [(step - 1) // n + 1]
        if step % n in points and (epoch % epoch_frequency == 0 or epoch == epochs)
    ]
    assert saves(n, num_epochs=epochs, ckpt_frequency=frequency, ckpt_epoch_frequency=epoch_frequency) == expected


def test_steps_save_every_ckpt_steps_and_at_the_end():
    assert saves(1, num_steps=7, ckpt_steps=3) == [3, 6, 7]


@pytest.mark.parametrize("ckpt_steps", [None, 100])
def test_steps_without_room_for_a_checkpoint_save_at_the_end(ckpt_steps):
    """Defect 2.1.10: ckpt_steps=None or above num_steps raised TypeError or IndexError."""
    assert saves(1, num_steps=7, ckpt_steps=ckpt_steps) == [7]


def test_epoch_settings_do_not_count_where_steps_are_counted():
    assert saves(2, num_steps=4, ckpt_frequency=0) == [4]


@given(batches=st.integers(1, 50), accumulation=st.integers(1, 8), epochs=st.integers(1, 4))
def test_the_tail_of_an_epoch_is_a_step(batches, accumulation, epochs):
    """Defect 2.2.8: micro-batches left over at the end of an epoch were dropped."""
    assert total(batches, epochs, accumulation) == epochs * math.ceil(batches / accumulation)


@pytest.mark.parametrize(("epochs", "steps"), [(2.5, 25), (0.1, 1), (0.04, 1), (1 / 3, 4), (0.3, 3)])
def test_a_fraction_of_an_epoch_is_that_many_steps(epochs, steps):
    assert total(10, epochs) == steps


def test_a_float_that_is_almost_whole_adds_no_step():
    assert 0.07 * 100 > 7
    assert total(100, 0.07) == 7


@pytest.mark.parametrize("given", [{}, {"num_epochs": 1, "num_steps": 1}])
def test_epochs_or_steps_must_be_given_and_not_both(given):
    with pytest.raises(ConfigError, match="pass num_epochs or num_steps"):
        make_plan([1], TrainingConfig(), **given)


@pytest.mark.parametrize("name", ["num_epochs", "num_steps"])
@pytest.mark.parametrize("value", [0, -1, True, "3", math.inf, math.nan])
def test_a_length_must_be_a_positive_number(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: must be a positive number"):
        make_plan([1], TrainingConfig(), **{name: value})


def test_half_a_step_is_an_error():
    with pytest.raises(ConfigError, match=r"num_steps: must be a whole number of optimizer steps, got 2.5"):
        make_plan([1], TrainingConfig(), num_steps=2.5)


def test_epochs_of_a_loader_without_a_length_ask_for_steps():
    """Weakness 2.3: an IterableDataset with num_epochs raised TypeError."""
    with pytest.raises(RunError, match="generator has none"):
        make_plan((x for x in []), TrainingConfig(), num_epochs=1)


def test_epochs_of_an_empty_loader_are_an_error():
    with pytest.raises(RunError, match="dataloader is empty"):
        make_plan([], TrainingConfig(), num_epochs=1)


def test_ckpt_steps_with_epochs_warns_that_it_does_nothing():
    with pytest.warns(UserWarning, match="ckpt_steps=2 has no effect with num_epochs"):
        make_plan([1], TrainingConfig(ckpt_steps=2), num_epochs=1)
