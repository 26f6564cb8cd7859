"""What a fingerprint of data covers, and that to take one changes nothing."""

from __future__ import annotations

import os
import random
from itertools import pairwise

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from kdplug.engine.checkpoint import fingerprint as module
from kdplug.engine.checkpoint.fingerprint import (
    UNKNOWN,
    code_fingerprint,
    data_fingerprint,
    dataset_fingerprint,
    described,
    tensor_fingerprint,
)
from kdplug.engine.checkpoint.identity import differences
from kdplug.errors import RunError


class Own(Dataset):
    def __init__(self, items):
        self.items = items
        self.asked = []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        self.asked.append(place)
        return self.items[place]


class Drawn(Own):
    """Augmented from the global generators."""

    def __getitem__(self, place):
        return self.items[place] + random.random() + float(numpy.random.rand()) + torch.rand(1).item()  # noqa: NPY002


class DrawnAlone(Own):
    """Augmented from a generator of its own."""

    def __init__(self, items):
        super().__init__(items)
        self.draw = random.Random(0)

    def __getitem__(self, place):
        return self.items[place] + self.draw.random()


class Keyed(Own):
    def __getitem__(self, place):
        return {"a": 1}[place]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Pid(Own):
    def __getitem__(self, place):
        return os.getpid()


def differ(one, other):
    return [difference.path for difference in differences(one, other)]


@pytest.mark.parametrize("place", [0, 15, 16, 40, 99])
def test_each_example_of_a_small_dataset_counts(place):
    items = list(range(100))
    before = dataset_fingerprint(Own(items))
    items[place] = -1
    assert differ(before, dataset_fingerprint(Own(items))) == ["content (100 examples compared)"]


def test_examples_in_another_order_are_other_data():
    assert differ(dataset_fingerprint(Own([1, 2, 3])), dataset_fingerprint(Own([1, 3, 2])))


def test_two_runs_compare_what_both_had_the_time_to_read(monkeypatch):
    items = list(range(1000))
    whole = dataset_fingerprint(Own(items))
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    asked = Own(items)
    part = dataset_fingerprint(asked)
    assert list(part["content"]) == ["16"]
    assert not differ(whole, part)
    items[asked.asked[3]] = -1
    assert differ(whole, dataset_fingerprint(Own(items))) == ["content (16 examples compared)"]


def test_the_first_examples_that_are_read_are_spread_over_the_dataset(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    data = Own(list(range(1000)))
    dataset_fingerprint(data)
    read = sorted(set(data.asked))
    assert len(read) == 16
    assert max(later - earlier for earlier, later in pairwise(read)) < 200
    assert min(read) < 100
    assert max(read) > 900


def test_data_that_are_drawn_from_the_global_generators_are_fingerprinted():
    items = [float(place) for place in range(40)]
    before = dataset_fingerprint(Drawn(items))
    random.seed(99)
    assert before == dataset_fingerprint(Drawn(items))
    items[7] = 0.5
    assert differ(before, dataset_fingerprint(Drawn(items)))


def test_data_that_are_drawn_from_a_generator_of_their_own_are_known_by_their_number():
    found = dataset_fingerprint(DrawnAlone([1.0] * 40))
    assert found == {"kind": "DrawnAlone", "examples": 40, "content": UNKNOWN}


def test_a_dataset_with_other_keys_than_places_is_known_by_its_number():
    assert dataset_fingerprint(Keyed([1, 2]))["content"] == UNKNOWN


def test_what_is_unknown_equals_everything():
    assert not differ(dataset_fingerprint(Keyed([1, 2])), {**dataset_fingerprint(Own([1, 2])), "kind": "Keyed"})


@pytest.mark.parametrize("loader", [iter([1, 2]), DataLoader(Stream()), (batch for batch in [1])])
def test_what_can_be_walked_through_once_is_not_touched(loader):
    found = data_fingerprint(loader)
    assert "content" not in found
    assert len(list(loader)) in (1, 2, 3)


def test_random_numbers_are_left_as_they_were():
    torch.manual_seed(3)
    random.seed(3)
    numpy.random.seed(3)  # noqa: NPY002
    data_fingerprint(DataLoader(Drawn([0.0] * 40), shuffle=True))
    found = torch.rand(1).item(), random.random(), numpy.random.rand()  # noqa: NPY002
    torch.manual_seed(3)
    random.seed(3)
    numpy.random.seed(3)  # noqa: NPY002
    assert found == (torch.rand(1).item(), random.random(), numpy.random.rand())  # noqa: NPY002


def test_a_dataset_for_workers_is_read_in_a_worker():
    """A file that it opens when it is first read would otherwise be shared by all workers of the run."""
    here = dataset_fingerprint(Pid([1, 2]))
    there = data_fingerprint(DataLoader(Pid([1, 2]), num_workers=1))
    assert here["content"] != there["content"]
    data = Own([1, 2])
    found = data_fingerprint(DataLoader(data, num_workers=1))
    assert not data.asked
    assert found["content"] == dataset_fingerprint(Own([1, 2]))["content"]


@pytest.mark.parametrize("make", [torch.arange, numpy.arange, lambda count: TensorDataset(torch.arange(count))])
def test_tensors_and_arrays_are_read_whole(make, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    data = make(100_000)
    before = dataset_fingerprint(data)
    (data.tensors[0] if isinstance(data, TensorDataset) else data)[54_321] += 1
    assert differ(before, dataset_fingerprint(data)) == ["content"]


def test_a_fingerprint_that_is_no_plain_data_is_an_error():
    class Tells(Own):
        def fingerprint(self):
            return {"rows": {1, 2}}

    with pytest.raises(RunError, match=r"Tells\.fingerprint\(\) must return plain data"):
        dataset_fingerprint(Tells([1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.complex64, torch.uint8])
def test_each_bit_of_a_tensor_counts_whatever_its_dtype(dtype):
    value = torch.ones(3, dtype=dtype)
    before = tensor_fingerprint([("a", value)])
    value[1] = 0
    assert tensor_fingerprint([("a", value)]) != before


@pytest.mark.parametrize("change", [lambda one: one.view(2, 3), lambda one: one.view(torch.int32)])
def test_equal_bytes_of_another_shape_or_dtype_are_another_tensor(change):
    value = torch.zeros(6)
    assert tensor_fingerprint([("a", value)]) != tensor_fingerprint([("a", change(value))])
    assert tensor_fingerprint([("a", value)]) != tensor_fingerprint([("b", value)])


@pytest.mark.parametrize("value", [torch.empty(3, device="meta"), torch.eye(3).to_sparse()])
def test_a_tensor_without_plain_bytes_is_not_compared(value):
    assert tensor_fingerprint([("a", torch.ones(2)), ("b", value)]) == UNKNOWN


@pytest.mark.parametrize(
    ("one", "other"), [("text", "texts"), (torch.tensor(1.0), torch.tensor(2.0)), ({"a": 1}, {"a": 2})]
)
def test_scalars_and_what_a_state_dict_holds_besides_tensors_count(one, other):
    assert tensor_fingerprint([("a", one)]) == tensor_fingerprint([("a", one)]) != tensor_fingerprint([("a", other)])


def test_code_is_identified_by_what_it_does_and_not_by_what_it_holds():
    class Held:
        def __init__(self, scale):
            self.scale = scale

        def __call__(self, batch):
            return batch * self.scale

        def other(self, batch):
            return batch + self.scale

    assert code_fingerprint(Held(2)) == code_fingerprint(Held(3)) != code_fingerprint(Held(2).other)
    assert code_fingerprint(lambda batch: batch + 1) != code_fingerprint(lambda batch: batch + 2)
    assert code_fingerprint(None) is None
    assert code_fingerprint(len) == "len"
    assert code_fingerprint(dict) == "dict"


def test_arguments_become_plain_data():
    assert described({"a": (1, None), "b": torch.tensor(0.5), "c": dict}) == {"a": [1, None], "b": 0.5, "c": "dict"}
    assert described(torch.arange(3)) == described(torch.arange(3)) != described(torch.arange(4))
