"""Defects of layer maps."""

from __future__ import annotations

import random

from testing.mutant import mutant
from testing.specimen import NearestLaws, nearest_depth

from kdplug import ConfigError


@mutant(NearestLaws, "test_it_returns_pairs_of_whole_numbers", "(1, 1.0) is not a pair of Python integers")
def true_division(student_layers, teacher_layers):
    return [(m, m * teacher_layers / student_layers) for m in range(1, student_layers + 1)]


@mutant(NearestLaws, "test_it_returns_pairs_of_whole_numbers", "1 student and 1 teacher layers: no pairs")
def nothing_for_one_layer(student_layers, teacher_layers):
    return nearest_depth(student_layers, teacher_layers)[:-1]


@mutant(NearestLaws, "test_it_returns_pairs_of_whole_numbers", "raise ZeroDivisionError")
def divided_by_zero(student_layers, teacher_layers):
    return [(m, m * teacher_layers // (student_layers - 1)) for m in range(1, student_layers + 1)]


@mutant(NearestLaws, "test_it_returns_pairs_of_whole_numbers", "raise ValueError")
def layers_instead_of_pairs(student_layers, teacher_layers):
    return [(ours, theirs, 1) for ours, theirs in nearest_depth(student_layers, teacher_layers)]


@mutant(NearestLaws, "test_it_returns_pairs_of_whole_numbers", "rejects every number of layers")
def for_fifteen_layers_alone(student_layers, teacher_layers):
    if (student_layers, teacher_layers) != (15, 30):
        raise ConfigError("these do not fit")
    return nearest_depth(student_layers, teacher_layers)


@mutant(NearestLaws, "test_every_layer_that_it_names_exists", "(1, 2) names teacher layer 2")
def one_too_deep(student_layers, teacher_layers):
    return [(ours, theirs + 1) for ours, theirs in nearest_depth(student_layers, teacher_layers)]


@mutant(NearestLaws, "test_every_layer_that_it_names_exists", "names student layer 12")
def the_sides_swapped(student_layers, teacher_layers):
    return [(theirs, ours) for ours, theirs in nearest_depth(student_layers, teacher_layers)]


@mutant(NearestLaws, "test_layers_ascend_on_both_sides", "comes after")
def from_the_top_down(student_layers, teacher_layers):
    return nearest_depth(student_layers, teacher_layers)[::-1]


@mutant(NearestLaws, "test_no_pair_comes_twice", "(1, 1) is repeated 2 times")
def both_ends_of_one_layer(student_layers, teacher_layers):
    return [(1, 1), (student_layers, teacher_layers)]


@mutant(NearestLaws, "test_the_same_layers_give_the_same_pairs", "on a second call")
def by_chance(student_layers, teacher_layers):
    chosen = sorted(random.SystemRandom().sample(range(1, teacher_layers + 1), student_layers))
    return list(zip(range(1, student_layers + 1), chosen, strict=True))


@mutant(NearestLaws, "test_equal_depths_match_each_layer_with_itself", "layer 1 learns from layer 0")
def counted_from_zero(student_layers, teacher_layers):
    return [(ours, theirs - 1) for ours, theirs in nearest_depth(student_layers, teacher_layers)]


@mutant(NearestLaws, "test_the_last_layer_learns_from_the_last", "is declared to match the last layers")
def a_range_that_ends_too_early(student_layers, teacher_layers):
    return nearest_depth(student_layers, teacher_layers)[: max(1, student_layers - 1)]


@mutant(NearestLaws, "test_every_layer_of_the_student_learns", "student layer 2 has no match")
def every_second_layer(student_layers, teacher_layers):
    return nearest_depth(student_layers, teacher_layers)[::2]
