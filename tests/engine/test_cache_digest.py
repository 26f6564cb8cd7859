"""Equal data have equal digests, other data others."""

from __future__ import annotations

from functools import partial

import numpy
import pytest
import torch

from kdplug.engine.cache_digest import code_digest, digest
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


def test_what_cannot_be_told_apart_is_refused():
    with pytest.raises(RunError, match="cannot be told from another"):
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
def test_a_callable_is_told_by_what_it_does_and_holds(make):
    assert code_digest(make(2)) == code_digest(make(2))
    assert code_digest(make(2)) != code_digest(make(3))


def test_a_line_more_is_another_callable():
    one, other = (lambda x: x), (lambda x: -x)
    assert code_digest(one) != code_digest(other)
