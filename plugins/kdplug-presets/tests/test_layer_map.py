"""Layer maps: pairs written down from the papers, and laws for all depths."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdplug import ConfigError
from kdplug_presets.layer_map import emb_and_last, last, skip, uniform

depths = st.integers(1, 48).flatmap(lambda teacher: st.tuples(st.integers(1, teacher), st.just(teacher)))
maps = st.sampled_from(
    [
        lambda m, n: uniform(m, n, round=True),
        lambda m, n: uniform(m, n, round=True, embeddings=True),
        lambda m, n: skip(m, n, round=True, top=True),
        lambda m, n: last(m, n, top=True),
        emb_and_last,
    ]
)


def test_uniform_is_tinybert_s_three_to_one():
    assert uniform(4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]


def test_uniform_takes_the_embeddings_along_when_told():
    assert uniform(6, 12, embeddings=True) == [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]


def test_skip_is_pkd_s_every_second_layer_without_the_last():
    assert skip(6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]


def test_skip_of_three_layers_is_pkd_s_four_and_eight():
    assert skip(3, 12) == [(1, 4), (2, 8)]


def test_last_is_pkd_s_upper_layers_without_the_last():
    assert last(6, 12) == [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]


def test_the_top_joins_when_told():
    assert skip(3, 12, top=True) == uniform(3, 12)
    assert last(3, 12, top=True) == [(1, 10), (2, 11), (3, 12)]


def test_emb_and_last_is_two_pairs():
    assert emb_and_last(4, 12) == [(0, 0), (4, 12)]


def test_layers_that_do_not_divide_are_rounded_only_when_told():
    assert uniform(5, 12, round=True) == [(1, 2), (2, 5), (3, 7), (4, 10), (5, 12)]
    for layer_map in (uniform, skip):
        with pytest.raises(
            ConfigError,
            match=rf"^{layer_map.__name__}: the teacher's 12 layers are not a multiple of the student's 5\.",
        ):
            layer_map(5, 12)


def test_half_way_the_lower_layer_is_taken():
    assert uniform(4, 6, round=True) == [(1, 1), (2, 3), (3, 4), (4, 6)]


@pytest.mark.parametrize("layer_map", [uniform, skip, last])
def test_a_student_deeper_than_its_teacher_is_refused(layer_map):
    with pytest.raises(ConfigError, match="the student has 6 layers and the teacher 4"):
        layer_map(6, 4)


@pytest.mark.parametrize("layer_map", [skip, last])
def test_a_student_of_one_layer_has_nothing_below_the_top(layer_map):
    with pytest.raises(ConfigError, match="the student has only one"):
        layer_map(1, 12)


@given(maps, depths)
def test_every_map_rises_ends_at_both_tops_and_stays_in_range(layer_map, counts):
    pairs = layer_map(*counts)
    assert pairs[-1] == counts
    assert all(0 <= ours <= counts[0] and 0 <= theirs <= counts[1] for ours, theirs in pairs)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(pairs))


@given(maps, st.integers(1, 48))
def test_equal_depths_map_each_layer_to_itself(layer_map, count):
    assert all(ours == theirs for ours, theirs in layer_map(count, count))


@given(st.integers(2, 48).flatmap(lambda n: st.tuples(st.integers(2, n), st.just(n))))
def test_without_the_top_just_the_last_pair_is_missing(counts):
    assert skip(*counts, round=True) == skip(*counts, round=True, top=True)[:-1]
    assert last(*counts) == last(*counts, top=True)[:-1]
