"""Equal data have equal digests, other data others."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy
import pytest
import torch

from kdplug.engine.hashing import code_digest, digest
from kdplug.errors import RunError

VALUES = [
    None,
    0,
    0.0,
    False,
    "0",
    b"0",
    [],
    {},
    [0],
    {"a": 0},
    [[0], []],
    [[], [0]],
    torch.zeros(2),
    torch.zeros(2, 1),
    torch.zeros(2, dtype=torch.float64),
    torch.zeros(2, dtype=torch.bfloat16),
    torch.tensor([0.0, -0.0]),
    torch.zeros(0),
    torch.tensor(0.0),
    numpy.zeros(2),
    numpy.zeros((2, 1)),
    numpy.zeros((), dtype="int8"),
    {1, 2},
]


def test_values_that_differ_in_kind_shape_or_bits_have_digests_of_their_own():
    assert len({digest(value) for value in VALUES}) == len(VALUES)


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_copy_has_the_same_digest(value):
    import copy

    assert digest(copy.deepcopy(value)) == digest(value)


def test_how_a_tensor_lies_in_memory_does_not_count():
    whole = torch.arange(12).view(3, 4)
    assert digest(whole.t()) == digest(whole.t().contiguous())


def test_what_cannot_be_distinguished_is_refused():
    with pytest.raises(RunError, match="cannot be hashed"):
        digest(lambda: 0)


def scaled(factor):
    return lambda batch, outputs: outputs * factor


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, batch, outputs):
        return outputs * self.factor

    def method(self, batch, outputs):
        return outputs * self.factor


@pytest.mark.parametrize("make", [scaled, Scaled, lambda f: Scaled(f).method, lambda f: partial(Scaled(0), batch=f)])
def test_a_callable_is_identified_by_what_it_does_and_holds(make):
    assert code_digest(make(2)) == code_digest(make(2))
    assert code_digest(make(2)) != code_digest(make(3))


SCALE = 2.0


def helper(value):
    return value + 1


def reads_globals(batch, outputs):
    return helper(outputs) * SCALE


def test_global_variables_and_functions_that_a_callable_reads_count(monkeypatch):
    before = code_digest(reads_globals)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert code_digest(reads_globals) != before
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert code_digest(reads_globals) == before
    monkeypatch.setitem(globals(), "helper", scaled(2))
    assert code_digest(reads_globals) != before


COUNT = 0


def test_a_global_variable_that_a_callable_counts_in_does_not_count(monkeypatch):
    def counts(batch, outputs):
        global COUNT  # noqa: PLW0603  what is tested
        COUNT += 1
        return outputs

    before = code_digest(counts)
    monkeypatch.setitem(globals(), "COUNT", 5)
    assert code_digest(counts) == before


def test_a_variable_of_a_closure_that_a_callable_counts_in_does_not_count():
    calls = 0

    def counts(batch, outputs):
        nonlocal calls
        calls += 1
        return outputs

    before = code_digest(counts)
    counts(None, None)
    assert code_digest(counts) == before


def test_the_state_of_objects_and_modules_can_be_left_out():
    linear = torch.nn.Linear(2, 2)

    def digests(held):
        return code_digest(scaled(held), with_state=False)

    assert digests(Scaled(2)) == digests(Scaled(3)) != digests(Scaled(2).method)
    assert digests(linear) == digests(torch.nn.Linear(2, 2)) != digests(torch.nn.Linear(2, 3))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.float16, torch.float32),
        ({1, 2}, {1, 3}),
        (numpy.float32(1), numpy.float32(2)),
        (Path("a"), Path("b")),
        (torch, numpy),
        (range(2), range(3)),
    ],
    ids=str,
)
def test_values_without_attributes_count_where_a_callable_holds_them(one, other):
    assert code_digest(scaled(one)) == code_digest(scaled(one))
    assert code_digest(scaled(one)) != code_digest(scaled(other))


def deep(weight):
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, weight)
    torch.nn.init.zeros_(model.bias)
    for _ in range(20):
        model = torch.nn.Sequential(model)
    return model


def test_weights_count_however_deep_in_a_module_they_are():
    assert code_digest(scaled(deep(1.0))) == code_digest(scaled(deep(1.0)))
    assert code_digest(scaled(deep(1.0))) != code_digest(scaled(deep(2.0)))


def test_objects_that_hold_each_other_have_a_digest():
    one, other = Scaled(1), Scaled(2)
    one.other, other.other = other, one
    assert code_digest(one) == code_digest(one)
    before = code_digest(one)
    other.factor = 3
    assert code_digest(one) != before


def test_a_tensor_without_values_is_refused():
    with pytest.raises(RunError, match="a tensor on the meta device has no values"):
        digest(torch.empty(2, device="meta"))


def test_a_line_more_is_another_callable():
    one, other = (lambda x: x), (lambda x: -x)
    assert code_digest(one) != code_digest(other)
