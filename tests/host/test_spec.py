"""The three spellings of a component."""

from __future__ import annotations

from typing import Any

import pytest
from host_strategy import DATA
from hypothesis import given
from hypothesis import strategies as st

from kdplug.errors import ConfigError
from kdplug.host.spec import ComponentSpec, parse_spec

NAMES = st.text(min_size=1).filter(str.strip)
SETTINGS = st.dictionaries(st.text(max_size=5).filter(lambda key: key != "name"), DATA, max_size=3)
SPELLINGS = (
    NAMES
    | st.tuples(NAMES, st.lists(DATA, max_size=4)).map(lambda pair: [pair[0], *pair[1]])
    | st.tuples(NAMES, SETTINGS).map(lambda pair: {"name": pair[0], **pair[1]})
)


@given(SPELLINGS)
def test_a_component_comes_back_as_it_was_written(data: Any) -> None:
    spec = parse_spec(data)
    written = spec.to_data()
    assert parse_spec(written) == spec
    assert written == data or data == [*written, {}]


@given(SPELLINGS)
def test_reading_and_writing_share_nothing_with_the_callers_data(data: Any) -> None:
    spec = parse_spec(data)
    before = repr(spec.to_data())
    for shared in (data, spec.to_data()):
        if isinstance(shared, list):
            shared.append("changed")
        elif isinstance(shared, dict):
            shared["changed"] = 1
    assert repr(spec.to_data()) == before


@pytest.mark.parametrize(
    ("data", "spec"),
    [
        ("dkd", ComponentSpec("dkd")),
        (["dkd"], ComponentSpec("dkd", form="list")),
        (("dkd", 1, 8), ComponentSpec("dkd", (1, 8), form="list")),
        (["dkd", 1, {"beta": 8}], ComponentSpec("dkd", (1,), {"beta": 8}, "list")),
        (["dkd", {"beta": 8}, {}], ComponentSpec("dkd", ({"beta": 8},), {}, "list")),
        ({"beta": 8, "name": "dkd"}, ComponentSpec("dkd", (), {"beta": 8}, "mapping")),
        (ComponentSpec("dkd"), ComponentSpec("dkd")),
    ],
)
def test_the_three_spellings(data: Any, spec: ComponentSpec) -> None:
    assert parse_spec(data) == spec


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([], "an empty list names no component. Write a name"),
        ("", "a component's name must be a non-empty string, got ''"),
        ("  ", "a component's name must be a non-empty string, got '  '"),
        ([1, 2], "a component's name must be a non-empty string, got 1"),
        ({"name": None}, "a component's name must be a non-empty string, got None"),
        ({"beta": 1}, "a component needs a 'name', got {'beta': 1}"),
        ({"name": "x", 1: 2}, "a setting's name must be a string, got 1"),
        (["x", {1: 2}], "a setting's name must be a string, got 1"),
        (None, "cannot read None as a component"),
        (3, "cannot read 3 as a component"),
        (len, "a config holds plain data, got the callable <built-in function len>. Register it under a name"),
    ],
)
def test_anything_else_is_an_error(data: Any, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(data)
    assert str(caught.value).startswith(told)
