"""What the loader yields reaches the models as it came, and each container keeps its type."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from kdplug.engine.training_module import call, split, to_device
from kdplug.errors import RunError

META = torch.device("meta")


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass
class Item:
    x: torch.Tensor
    note: str


def echo(*args, **kwargs):
    return args, kwargs


def test_a_mapping_is_passed_by_keyword():
    assert call(echo, {"x": 1}, {"y": 2}) == ((), {"x": 1, "y": 2})


def test_extras_of_a_batch_reach_no_model(caplog):
    def narrow(x):
        return x

    batch = {"x": 1, "extras": {"weight": 2}}
    assert call(echo, batch, {}) == ((), {"x": 1})
    assert call(echo, batch, {"y": 2}) == ((), {"x": 1, "y": 2})
    assert call(narrow, batch, {}) == 1
    assert not caplog.records
    assert batch == {"x": 1, "extras": {"weight": 2}}


def test_a_model_that_takes_extras_is_an_error():
    def takes(x, extras):
        return x, extras

    with pytest.raises(RunError, match=r"'extras', but that key of a batch is for adaptors and is passed to no model"):
        call(takes, {"x": 1, "extras": {}}, {})


@pytest.mark.parametrize("batch", [(1, 2), [1, 2], Point(1, 2)], ids=["tuple", "list", "namedtuple"])
def test_a_sequence_is_passed_by_position(batch):
    assert call(echo, batch, {"y": 2}) == ((1, 2), {"y": 2})


def test_a_bare_tensor_is_one_argument_and_not_its_rows():
    """Defect 2.2.13: rows of a bare tensor batch became positional arguments."""
    batch = torch.zeros(2, 5)
    (argument,), _ = call(echo, batch, {})
    assert argument is batch


def test_a_packed_sequence_is_one_argument():
    batch = pack_sequence([torch.zeros(2)])
    (argument,), _ = call(echo, batch, {})
    assert argument is batch


def test_a_batch_with_two_sides_is_divided():
    assert split({"teacher": 1, "student": 2})[:3] == (1, 2, None)
    assert split({"teacher": 1, "student": 2, "teacher_cache": 3})[:3] == (1, 2, 3)


@pytest.mark.parametrize("batch", [{"teacher": 1}, (1, 2), "ab"])
def test_any_other_batch_goes_to_both_sides(batch):
    assert split(batch)[:3] == (batch, batch, None)


@pytest.mark.parametrize(
    "value",
    [
        Point(torch.zeros(1), torch.zeros(1)),
        [torch.zeros(1)],
        (torch.zeros(1), "text"),
        {"x": torch.zeros(1)},
        defaultdict(list, x=torch.zeros(1)),
        Item(torch.zeros(1), "text"),
        pack_sequence([torch.zeros(2)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_moving_to_a_device_keeps_the_type_of_the_container(value):
    """Weakness 2.3: TextBrewer turned a namedtuple or PackedSequence into a tuple and a ModelOutput into a dict."""
    moved = to_device(value, META)
    assert type(moved) is type(value)
    assert leaves(moved)
    assert all(leaf.device == META for leaf in leaves(moved))


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, Item):
        value = [value.x]
    return [leaf for item in value if not isinstance(item, str) for leaf in leaves(item)]


def test_a_transformers_output_stays_one():
    output = pytest.importorskip("transformers.modeling_outputs").SequenceClassifierOutput(logits=torch.zeros(1))
    moved = to_device(output, META)
    assert type(moved) is type(output)
    assert moved.logits.device == META


def test_moving_leaves_the_callers_containers_alone():
    inner = defaultdict(list, x=torch.zeros(1))
    outer = {"inner": inner, "pair": [torch.zeros(1)]}
    to_device(outer, META)
    assert outer["inner"] is inner
    assert {leaf.device.type for leaf in leaves(outer)} == {"cpu"}


def test_an_immutable_mapping_becomes_a_dict():
    assert to_device(MappingProxyType({"x": torch.zeros(1)}), META)["x"].device == META


@pytest.mark.parametrize("value", [None, 1, "text", b"bytes", {1, 2}])
def test_what_holds_no_tensor_passes_through(value):
    assert to_device(value, META) is value
