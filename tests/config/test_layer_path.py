"""Module paths as a config writes them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdplug.config.layer import LayerPath, read_path
from kdplug.config.match import IntermediateMatch
from kdplug.errors import ConfigError

names = st.from_regex(r"[a-z0-9_]{1,6}(\.[a-z0-9_]{1,6}){0,3}", fullmatch=True)
steps = st.lists(st.integers(-9, 9) | st.from_regex(r"[a-z_]\w{0,5}", fullmatch=True), max_size=3).map(tuple)
paths = st.builds(LayerPath, names, st.none() | st.integers(-3, 3), st.sampled_from(["output", "input"]), steps)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("encoder.layer.3", LayerPath("encoder.layer.3")),
        ("3", LayerPath("3")),
        ("encoder:output[1]", LayerPath("encoder", steps=(1,))),
        ("encoder:output.hidden_states[-1]", LayerPath("encoder", steps=("hidden_states", -1))),
        ("encoder:input[0]", LayerPath("encoder", source="input", steps=(0,))),
        ("encoder:input", LayerPath("encoder", source="input")),
        ("shared@1:output[0]", LayerPath("shared", call=1, steps=(0,))),
        ("shared@-1", LayerPath("shared", call=-1)),
        ("layer.[02]", LayerPath("layer.[02]")),
    ],
)
def test_a_path_is_taken_apart(text, path):
    assert read_path(text) == path
    assert str(path) == text


def test_output_alone_says_nothing_new():
    assert read_path("encoder:output") == read_path("encoder")


@given(paths)
def test_a_path_that_is_written_is_read_back(path):
    assert read_path(str(path)) == path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot read '' as the path of a module"),
        ("a..b", "cannot read 'a..b' as the path of a module"),
        ("a.", "cannot read 'a.' as the path of a module"),
        ("a b", "cannot read 'a b' as the path of a module"),
        ("a@x", "cannot read 'a@x' as the path of a module"),
        ("a:outputs", "'a:outputs': ':' must be followed by output or input, got 'outputs'. Did you mean 'output'?"),
        ("a:output[x]", "'a:output[x]': cannot read '[x]'. Write [1] or .name after output"),
        ("a:input.0", "'a:input.0': cannot read '.0'. Write [1] or .name after input"),
    ],
)
def test_what_is_no_path_is_refused_in_words(match, text, says):
    with pytest.raises(ConfigError, match=f"^layer_S: {re.escape(says)}"):
        IntermediateMatch(**{**match, "layer_S": text})


@pytest.mark.parametrize(
    ("glob", "name", "fits"),
    [
        ("layer.*", "layer.3", True),
        ("layer.*", "layer.3.attention", False),
        ("layer.*", "encoder.layer.3", False),
        ("**.layer.*", "bert.encoder.layer.3", True),
        ("**.layer.*", "layer.3", True),
        ("*.attention.*.query", "3.attention.self.query", True),
        ("layer.[02]", "layer.2", True),
        ("layer.[02]", "layer.1", False),
        ("layer.?", "layer.11", False),
        ("layer.3", "layer.3", True),
    ],
)
def test_a_star_matches_one_part_and_two_any_number(glob, name, fits):
    assert read_path(glob).matches(name) is fits


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("layer.9", "layer.3"),
        (9, "layer.3"),
        ("layer.9:output[1]", -1),
        (["layer.9", 9], [3, "layer.3"]),
        ([1, 2, 3], "layer.*"),
        (["layer.*"], [1, 2]),
        ("layer.*", ["layer.*"]),
    ],
)
def test_paths_and_indices_may_be_on_either_side(match, teacher, student):
    found = IntermediateMatch(**{**match, "layer_T": teacher, "layer_S": student})
    assert IntermediateMatch.from_dict(found.to_dict()) == found
    assert IntermediateMatch.from_yaml(found.to_yaml()) == found
    assert IntermediateMatch.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("teacher", "student", "says"),
    [
        (["a", "b"], "c", "must both be single layers or both be lists, got ['a', 'b'] and c"),
        (["a", "b"], ["c"], "must have the same length, got ['a', 'b'] and ['c']"),
    ],
)
def test_paths_that_do_not_pair_up_are_refused(match, teacher, student, says):
    with pytest.raises(ConfigError, match=f"^layer_T and layer_S {re.escape(says)}$"):
        IntermediateMatch(**{**match, "layer_T": teacher, "layer_S": student})


def test_two_paths_need_no_feature(match):
    del match["feature"]
    assert IntermediateMatch(**{**match, "layer_T": "a", "layer_S": "b"}).feature == "hidden"


@pytest.mark.parametrize(("teacher", "student"), [(1, "b"), ("a", 1), ([1, "a"], ["a", "b"])])
def test_an_index_on_either_side_needs_a_feature(match, teacher, student):
    del match["feature"]
    with pytest.raises(
        ConfigError,
        match=r"^feature: is required \(hidden or attention\) unless both layer_S and layer_T are module paths$",
    ):
        IntermediateMatch(**{**match, "layer_T": teacher, "layer_S": student})
