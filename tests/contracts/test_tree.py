"""Walks over nested containers: nothing in them is skipped, and stored names do not change."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

from kdplug.contracts.tree import dotted, leaves, map_leaves, tensors
from kdplug.engine.cache.fingerprint import changes
from kdplug.engine.cache.layout import padding_signatures
from kdplug.engine.hashing import text_digest
from kdplug.engine.normalization import same_shapes
from kdplug.engine.observe.tracking import flat
from kdplug.engine.training_module import to_device

Pair = namedtuple("P", "first second")  # noqa: PYI024  as users write it


@dataclass(frozen=True)
class Record:
    x: object
    name: str = "record"


class Rows(list):
    pass


@dataclass
class Layer(nn.Module):
    weight: object = None


def ids(start: int) -> torch.Tensor:
    return torch.arange(6).reshape(2, 3) + start


def encoding(**items):
    return pytest.importorskip("transformers").BatchEncoding(items)


def model_output(**items):
    return pytest.importorskip("transformers.modeling_outputs").SequenceClassifierOutput(**items)


ONE = torch.ones(1)
CONTAINERS = {
    "tensor": (lambda: ONE, ""),
    "list": (lambda: [ONE], "0"),
    "tuple": (lambda: (ONE,), "0"),
    "dict": (lambda: {"x": ONE}, "x"),
    "int key": (lambda: {3: ONE}, "3"),
    "OrderedDict": (lambda: OrderedDict(x=ONE), "x"),
    "defaultdict": (lambda: defaultdict(list, x=ONE), "x"),
    "mapping proxy": (lambda: MappingProxyType({"x": ONE}), "x"),
    "named tuple": (lambda: Pair(ONE, "text"), "0"),
    "list subclass": (lambda: Rows([ONE]), "0"),
    "dataclass": (lambda: Record(ONE), "x"),
    "BatchEncoding": (lambda: encoding(x=ONE), "x"),
    "ModelOutput": (lambda: model_output(logits=ONE), "logits"),
    "nested": (lambda: {"a": [Record((encoding(x=ONE),))]}, "a.0.x.0.x"),
}


@pytest.mark.parametrize("make", CONTAINERS)
def test_the_tensor_in_every_kind_of_container_is_found(make):
    tree, path = CONTAINERS[make][0](), CONTAINERS[make][1]
    assert [(dotted(found), leaf) for found, leaf in leaves(tree) if isinstance(leaf, torch.Tensor)] == [(path, ONE)]


@pytest.mark.parametrize("make", CONTAINERS)
def test_mapping_keeps_the_type_of_every_container_and_changes_none(make):
    tree = CONTAINERS[make][0]()
    made = map_leaves(lambda leaf: leaf + 1 if isinstance(leaf, torch.Tensor) else leaf, tree)
    assert isinstance(made, dict if make == "mapping proxy" else type(tree))
    assert list(tensors(made)) == [2 * ONE]
    assert list(tensors(tree)) == [ONE]


@pytest.mark.parametrize("make", ["BatchEncoding", "dataclass", "mapping proxy", "list subclass"])
def test_torch_s_own_walk_skips_the_tensor(make):
    """The reason for the module; without these it can be deleted."""
    assert not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(CONTAINERS[make][0]()))


def test_a_module_is_not_opened():
    layer = Layer()
    assert [leaf for _, leaf in leaves([layer])] == [layer]


def test_is_leaf_keeps_a_container_closed():
    packed = pack_sequence([torch.ones(2)])
    assert [leaf for _, leaf in leaves([packed], lambda value: hasattr(value, "data"))] == [packed]


def nested():
    deep = Pair(ids(3), torch.ones(2, 3))
    ordered = OrderedDict(y=ids(5), x=ids(6))
    return {"z": ids(0), "a": [ids(1), (ids(2), deep)], "e": encoding(input_ids=ids(4)), "d": ordered, 3: ids(7)}


def test_names_and_digests_that_caches_store_are_those_of_earlier_releases():
    found = padding_signatures(nested())
    assert list(found) == ["z", "a.0", "a.1.0", "a.1.1.0", "e.input_ids", "d.y", "d.x", "3"]
    assert text_digest(nested()) == "af5411a98358d6ef"
    assert text_digest(found) == "e66c9ac41bccf548"
    assert list(padding_signatures(ids(0))) == [""]


def test_names_that_trackers_store_are_those_of_earlier_releases():
    tree = {"a": {"b": 1, "": {"c": [1, 2]}}, "": {"q": None}, "e": {}, "t": (1, 2)}
    assert flat(tree) == {"a.b": 1, "a.c": "[1, 2]", "q": "null", "e": "{}", "t": "[1, 2]"}


def test_a_changed_fingerprint_is_described_by_path():
    before = {"adaptor": {"t": {"x": 1, "": {"y": [1, 2]}}, "e": {}}}
    after = {"adaptor": {"t": {"x": 2, "": {"y": [1, 3]}}, "e": {"n": 1}}}
    assert changes(before, after) == ["the teacher's adaptor: t.x 1 -> 2, t.y [1, 2] -> [1, 3], e.n None -> 1"]


@pytest.mark.parametrize("wrap", [Record, lambda x: {"x": Record(x)}, lambda x: encoding(x=x)])
def test_batches_of_other_lengths_do_not_have_the_same_shapes(wrap):
    assert same_shapes([wrap(torch.ones(2, 3)), wrap(torch.zeros(2, 3))])
    assert not same_shapes([wrap(torch.ones(2, 3)), wrap(torch.ones(2, 4))])


def test_an_object_with_a_to_method_moves_itself():
    packed = pack_sequence([torch.ones(2)])
    moved = to_device({"x": packed, "text": "a"}, torch.device("meta"))
    assert (type(moved["x"]), moved["x"].data.device.type, moved["text"]) == (type(packed), "meta", "a")
