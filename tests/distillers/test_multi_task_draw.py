"""Which task a step of ``MultiTaskDistiller`` trains on."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from multi_task_scene import TWO, Examples, drawn, loaders, make
from small_run import make_batches, make_student, sgd
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from kdplug.engine.multi_task import example_count, shares_of
from kdplug.errors import ConfigError, RunError


def test_2_2_17_tasks_are_drawn_by_examples_and_not_by_batches(tmp_path):
    """20 and 4 examples in batches of 10 and 1 are 2 and 4 batches; TextBrewer drew 66 and 134 of 200."""
    counts = Counter(drawn(tmp_path, loaders(a=(20, 10), b=(4, 1)), 200))
    assert counts["a"] / 200 == pytest.approx(5 / 6, abs=0.08)


@pytest.mark.parametrize(("tau", "share"), [(0, 0.5), (0.5, 0.75), (1, 0.9), (2, 81 / 82), (-1, 0.1)])
def test_tau_is_the_exponent(tau, share):
    assert shares_of({"a": 90, "b": 10}, tau)["a"] == pytest.approx(share)


def test_shares_of_very_many_examples_do_not_overflow():
    assert shares_of({"a": 10**9, "b": 10**9}, 1000) == {"a": 0.5, "b": 0.5}


def test_a_sampler_says_how_many_examples_a_pass_has():
    data = Examples(20)
    assert example_count(DataLoader(data, 3)) == 20
    assert example_count(DataLoader(data, sampler=SubsetRandomSampler(range(5)))) == 5
    assert example_count(DataLoader(data, batch_sampler=[[0, 1], [2]])) == 20
    assert example_count(DataLoader(data, batch_size=None)) is None
    assert example_count(DataLoader(Stream(2), 2)) is None
    assert example_count(make_batches(3)) is None


def test_2_2_17_the_draws_do_not_touch_global_random_state(tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    student = make_student()
    data = {task: make_batches(2) for task in "ab"}
    make(tmp_path, student).train(sgd(student), data, 5, tau=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def test_the_draws_are_those_of_the_seed(tmp_path):
    first = drawn(tmp_path, loaders(**TWO), 30, seed=1)
    torch.manual_seed(99)
    assert drawn(tmp_path, loaders(**TWO), 30, seed=1) == first
    assert drawn(tmp_path, loaders(**TWO), 30, seed=2) != first


class Stream(IterableDataset):
    """A dataset without a length."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(Examples(self.count))


def test_an_unknown_length_makes_tasks_equally_likely_and_is_said_once(tmp_path):
    data = {"a": DataLoader(Examples(1000), 4), "b": DataLoader(Stream(8), 4)}
    with pytest.warns(UserWarning, match="the number of examples in the loader of 'b' is unknown") as said:
        counts = Counter(drawn(tmp_path, data, 100))
    assert len(said) == 1
    assert counts["a"] == pytest.approx(50, abs=15)


def test_equal_shares_by_tau_0_need_no_length(tmp_path):
    assert set(drawn(tmp_path, {"a": make_batches(2), "b": make_batches(2)}, 20, tau=0)) == {"a", "b"}


@pytest.mark.parametrize("tau", [float("nan"), float("inf"), "1", True])
def test_tau_is_a_finite_number(tmp_path, tau):
    with pytest.raises(ConfigError, match="tau: must be a finite number"):
        drawn(tmp_path, loaders(**TWO), 1, tau=tau)


def test_2_2_17_an_exhausted_generator_is_an_error_that_names_its_task(tmp_path):
    data = {"a": make_batches(2), "b": (batch for batch in make_batches(2))}
    with pytest.raises(RunError, match=r"dataloaders.b: the dataloader is exhausted: epoch 2 .*a generator\?"):
        drawn(tmp_path, data, 100, tau=0)


@pytest.mark.parametrize("empty", [[], DataLoader(Examples(0), 4)], ids=["list", "loader"])
def test_an_empty_loader_is_an_error_that_names_its_task(tmp_path, empty):
    with pytest.raises(RunError, match=r"dataloaders.b: the dataloader is empty"):
        drawn(tmp_path, {"a": make_batches(2), "b": empty}, 100, tau=0)
