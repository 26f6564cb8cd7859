from __future__ import annotations

import copy
import json
import math
import pickle

import pytest

from kdplug.config.model import FrozenDict, freeze, thaw
from kdplug.errors import ConfigError


def test_thawing_undoes_freezing():
    data = {"a": [1, 2.5, {"b": None}], "c": True, "d": "text"}
    assert thaw(freeze(data)) == data


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.__setitem__("a", 2),
        lambda d: d.__delitem__("a"),
        lambda d: d.update(a=2),
        lambda d: d.pop("a"),
        lambda d: d.popitem(),
        lambda d: d.clear(),
        lambda d: d.setdefault("b", 1),
        lambda d: d.__ior__({"b": 1}),
    ],
)
def test_a_frozen_dict_refuses_every_change(change):
    frozen = FrozenDict(a=1)
    with pytest.raises(TypeError, match=r"configs are immutable: create a new one"):
        change(frozen)
    assert frozen == {"a": 1}


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_a_frozen_dict_is_copied_and_pickled_as_it_is(again):
    frozen = freeze({"a": {"b": [1]}})
    assert again(frozen) == frozen
    assert type(again(frozen)["a"]) is FrozenDict


def test_a_frozen_dict_is_written_as_json():
    assert json.dumps(freeze({"a": [1, {"b": 2}]})) == '{"a": [1, {"b": 2}]}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_place(value):
    with pytest.raises(ConfigError, match=rf"^a\.1: must be a finite number, got {value!r}$"):
        freeze({"a": [1, value]})


def test_an_object_is_refused():
    with pytest.raises(ConfigError, match=r"^a: a config is data: .* Got <object object at .*> \(object\)$"):
        freeze({"a": object()})


def test_a_key_that_is_not_text_is_refused():
    with pytest.raises(ConfigError, match=r"^a key must be text, got 1$"):
        freeze({1: 2})


def test_a_list_that_holds_itself_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ConfigError, match=r"is nested too deeply: .* or contains itself"):
        freeze(loop)
