"""Advice for layer maps, followed."""

from __future__ import annotations

import random

from testing import layer_map_mutant as wrong
from testing.advice import followed
from testing.specimen import NearestLaws, laws_of, nearest_depth

from kdplug import ConfigError
from kdplug.testing import LayerMapLaws


@followed("true_division", "use // or int(round())")
def whole_division(student_layers, teacher_layers):
    return [(m, m * teacher_layers // student_layers) for m in range(1, student_layers + 1)]


followed("true_division", "use // or int(round())")(nearest_depth)


@followed("nothing_for_one_layer", "Raise a ConfigError with the reason")
def two_layers_at_least(student_layers, teacher_layers):
    if student_layers < 2:
        raise ConfigError("the last layer of the student is left out, so it must have 2 or more")
    return wrong.nothing_for_one_layer(student_layers, teacher_layers)


@followed("divided_by_zero", "Return pairs, or raise a ConfigError with the reason")
def divided_by_one_less(student_layers, teacher_layers):
    if student_layers < 2:
        raise ConfigError("the student must have 2 or more layers")
    return wrong.divided_by_zero(student_layers, teacher_layers)


@followed("layers_instead_of_pairs", "Return pairs, or raise a ConfigError with the reason")
def pairs_of_layers(student_layers, teacher_layers):
    return [(ours, theirs) for ours, theirs, _ in wrong.layers_instead_of_pairs(student_layers, teacher_layers)]


followed("for_fifteen_layers_alone", "Declare depths that it accepts")(
    laws_of(NearestLaws, wrong.for_fifteen_layers_alone, depths=((15, 30),))
)


@followed("one_too_deep", "count layers from 1: layer 0 is the embeddings' output")
def as_deep_as_counted(student_layers, teacher_layers):
    return [(ours, theirs - 1) for ours, theirs in wrong.one_too_deep(student_layers, teacher_layers)]


@followed("the_sides_swapped", "Name the student's layer first in each pair")
def the_student_first(student_layers, teacher_layers):
    return [(ours, theirs) for theirs, ours in wrong.the_sides_swapped(student_layers, teacher_layers)]


@followed("from_the_top_down", "Sort the pairs, the student's layer first in each")
def sorted_pairs(student_layers, teacher_layers):
    return sorted(wrong.from_the_top_down(student_layers, teacher_layers))


@followed("both_ends_of_one_layer", "Return each pair once, as sorted(set(pairs)) does")
def both_ends(student_layers, teacher_layers):
    return sorted(set(wrong.both_ends_of_one_layer(student_layers, teacher_layers)))


BY_NUMBERS = "Compute pairs from the numbers of layers alone, or draw with a fixed seed"
followed("by_chance", BY_NUMBERS)(nearest_depth)


@followed("by_chance", BY_NUMBERS)
def with_a_fixed_seed(student_layers, teacher_layers):
    chosen = sorted(random.Random(0).sample(range(1, teacher_layers + 1), student_layers))
    return list(zip(range(1, student_layers + 1), chosen, strict=True))


@followed("counted_from_zero", "Count layers from 1 on both sides")
def counted_from_one(student_layers, teacher_layers):
    return [(ours, theirs + 1) for ours, theirs in wrong.counted_from_zero(student_layers, teacher_layers)]


TOP = "Return the pair of the last layers too, or do not declare reaches_the_top"
followed("a_range_that_ends_too_early", TOP)(laws_of(LayerMapLaws, wrong.a_range_that_ends_too_early))


@followed("a_range_that_ends_too_early", TOP)
def with_the_last_pair(student_layers, teacher_layers):
    pairs = wrong.a_range_that_ends_too_early(student_layers, teacher_layers)
    return sorted({*pairs, (student_layers, teacher_layers)})


EVERY = "Return a pair for every layer of the student, or do not declare covers_the_student"
followed("every_second_layer", EVERY)(laws_of(LayerMapLaws, wrong.every_second_layer))


@followed("every_second_layer", EVERY)
def with_the_layers_between(student_layers, teacher_layers):
    pairs = dict(wrong.every_second_layer(student_layers, teacher_layers))
    return [(m, pairs.get(m, pairs.get(m - 1))) for m in range(1, student_layers + 1)]
