"""The loader as windows of micro-batches."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from kdplug.engine.accumulation_batches import AccumulationBatches
from kdplug.errors import RunError


@given(count=st.integers(1, 20), size=st.integers(1, 6), passes=st.integers(1, 3))
def test_every_batch_is_in_exactly_one_window_of_a_pass(count, size, passes):
    windows = list(AccumulationBatches(range(count), size, passes))
    assert [batch for window in windows for batch in window] == list(range(count)) * passes
    assert all(len(window) <= size for window in windows)


def test_no_window_crosses_from_one_pass_to_the_next():
    assert list(AccumulationBatches(range(3), 2, 2)) == [[0, 1], [2], [0, 1], [2]]


def test_without_passes_the_loader_is_cycled():
    assert list(islice(AccumulationBatches("ab", 1), 5)) == [["a"], ["b"], ["a"], ["b"], ["a"]]


@pytest.mark.parametrize("passes", [1, None])
def test_an_empty_loader_is_an_error_and_no_endless_wait(passes):
    """Weakness 2.3: an empty loader with num_steps hung."""
    with pytest.raises(RunError, match="dataloader is empty"):
        next(iter(AccumulationBatches([], 2, passes)))


def test_an_exhausted_generator_is_an_error_and_no_endless_wait():
    """Weakness 2.3: an exhausted generator with num_steps hung."""
    windows = iter(AccumulationBatches((x for x in "ab"), 1))
    assert list(islice(windows, 2)) == [["a"], ["b"]]
    with pytest.raises(RunError, match="exhausted: epoch 2"):
        next(windows)


def test_a_peek_takes_nothing_away():
    windows = AccumulationBatches((x for x in "abc"), 2, 1)
    assert windows.peek() == "a"
    assert list(windows) == [["a", "b"], ["c"]]


def test_a_peek_starts_the_loader_once():
    started = []

    class Loader:
        def __iter__(self):
            started.append(1)
            return iter("ab")

    windows = AccumulationBatches(Loader(), 1, 1)
    windows.peek()
    assert list(windows) == [["a"], ["b"]]
    assert started == [1]


def test_the_postprocessor_sees_each_batch_once_even_after_a_peek():
    seen = []
    windows = AccumulationBatches("ab", 1, 1, postprocess=lambda batch: seen.append(batch) or batch.upper())
    assert windows.peek() == "A"
    assert list(windows) == [["A"], ["B"]]
    assert seen == ["a", "b"]


@pytest.mark.parametrize("passes", [3, None])
def test_samplers_receive_each_pass(passes):
    """Defect 2.1.3: set_epoch was never called where steps are counted, so each pass had one order."""
    sampler = DistributedSampler(range(8), num_replicas=1, rank=0, shuffle=True)
    windows = AccumulationBatches(DataLoader(range(8), batch_size=8, sampler=sampler), 1, passes)
    orders = [tuple(window[0].tolist()) for window in islice(windows, 3)]
    assert len(set(orders)) == 3
    assert sampler.epoch == 2


def test_the_order_of_a_shuffling_loader_is_the_one_it_has_by_itself():
    def loader():
        return DataLoader(range(12), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(5))

    by_itself = loader()
    expected = [batch.tolist() for _ in range(2) for batch in by_itself]
    assert [window[0].tolist() for window in AccumulationBatches(loader(), 1, 2)] == expected
