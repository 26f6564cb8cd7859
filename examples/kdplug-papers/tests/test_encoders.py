"""MiniLMv2 and TinyBERT, against formulas written element by element."""
# ruff: noqa: RUF012  # a law class is a declaration

from __future__ import annotations

import math

import pytest
import torch
from by_element import dot, masked, several, softmax
from kdplug_papers.minilm import minilmv2
from kdplug_papers.tinybert import TinyBertHidden, tinybert_attention, tinybert_prediction, tinybert_query_key

import kdplug
from kdplug.testing import LossLaws

EXACT = {"rtol": 1e-12, "atol": 1e-12}
LENGTHS = (5, 3, 0, 1)
"""Tokens of each example that count, of 5: one example has none."""


def relation(tokens, token, head, size):
    """The probabilities with which one head of a token attends to all others."""
    part = slice(head * size, (head + 1) * size)
    return softmax([dot(tokens[token][part], other[part]) / math.sqrt(size) for other in tokens])


def test_minilmv2_is_the_mean_divergence_of_relations_over_the_tokens_that_count():
    heads, student, teacher = 3, several(3, 4, 5, 6), several(3, 4, 5, 12, seed=9)
    total = 0.0
    for own, other in zip(student, teacher, strict=True):
        for example, length in enumerate(LENGTHS):
            mine, theirs = own[example, :length].tolist(), other[example, :length].tolist()
            for head in range(heads):
                for token in range(length):
                    q, p = relation(mine, token, head, 2), relation(theirs, token, head, 4)
                    total += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)) / (3 * heads * length)
    found = minilmv2(student, teacher, masked(LENGTHS, 5), relation_heads=heads)
    torch.testing.assert_close(found.value.item(), total / 3, **EXACT)
    assert found.count == 3


def test_minilmv2_names_a_width_that_its_heads_do_not_divide():
    with pytest.raises(kdplug.ShapeError, match="minilmv2: 4 heads do not divide a width of 6"):
        minilmv2(several(3, 2, 5, 6), several(3, 2, 5, 8), relation_heads=4)


class TestMiniLMv2(LossLaws):
    entry = minilmv2
    settings = {"relation_heads": 3}
    layers = 3
    may_differ = (2,)
    shape, teacher_shape, large_shape = (4, 5, 6), (4, 5, 12), (1500, 16, 6)
    non_negative = zero_at_equality = True


def square_error(one, two):
    return (float(one) - float(two)) ** 2


def test_tinybert_attention_is_a_mean_per_layer_in_which_masked_scores_are_zero():
    student, teacher = several(2, 2, 3, 4, 4), several(2, 2, 3, 4, 4, seed=5)
    for one in (*student, *teacher):
        one[0, :, :, 3] -= 10_000
    student[0][1, 0, 0, 0], teacher[1][1, 2, 3, 0] = -100.0, -torch.inf
    total = 0.0
    for own, other in zip(student, teacher, strict=True):
        for a, b in zip(own.flatten().tolist(), other.flatten().tolist(), strict=True):
            total += square_error(0 if a <= -100 else a, 0 if b <= -100 else b)
    found = tinybert_attention(student, teacher)
    torch.testing.assert_close(found.value.item(), total / (2 * 3 * 4 * 4), **EXACT)


class TestTinyBertAttention(LossLaws):
    entry = tinybert_attention
    feature = "attention"
    layers = 2
    shape = (4, 2, 5, 5)
    non_negative = zero_at_equality = True


def test_tinybert_query_key_compares_the_scores_of_tokens_that_count():
    heads, student, teacher = 2, several(4, 4, 5, 6), several(4, 4, 5, 8, seed=7)

    def score(features, layer, example, head, row, column):
        size = features[0].shape[-1] // heads
        part = slice(head * size, (head + 1) * size)
        query, key = features[2 * layer][example, row, part], features[2 * layer + 1][example, column, part]
        return dot(query.tolist(), key.tolist()) / math.sqrt(size)

    total, count = 0.0, 0
    for example, length in enumerate(LENGTHS):
        for head in range(heads):
            for row in range(length):
                for column in range(length):
                    place = (example, head, row, column)
                    total += sum(square_error(score(student, n, *place), score(teacher, n, *place)) for n in range(2))
                    count += 1
    found = tinybert_query_key(student, teacher, masked(LENGTHS, 5), heads=heads)
    torch.testing.assert_close(found.value.item(), total / count, **EXACT)
    assert found.count == count


class TestTinyBertQueryKey(LossLaws):
    entry = tinybert_query_key
    settings = {"heads": 3}
    layers = 4
    may_differ = (2,)
    shape, teacher_shape, large_shape = (4, 5, 6), (4, 5, 9), (1500, 16, 6)
    non_negative = zero_at_equality = True


def test_tinybert_hidden_passes_all_layers_through_one_linear_layer():
    torch.manual_seed(0)
    loss = TinyBertHidden([3, 3], [4, 4]).double()
    student, teacher = several(2, 2, 5, 3), several(2, 2, 5, 4, seed=3)
    weight, bias = loss.fit.weight.tolist(), loss.fit.bias.tolist()
    total = 0.0
    for own, other in zip(student, teacher, strict=True):
        for example in range(2):
            for token in range(5):
                for unit in range(4):
                    fitted = dot(weight[unit], own[example, token].tolist()) + bias[unit]
                    total += square_error(fitted, other[example, token, unit])
    torch.testing.assert_close(loss(student, teacher).value.item(), total / (2 * 5 * 4), **EXACT)


def test_tinybert_hidden_has_one_linear_layer_for_any_number_of_layers():
    assert sum(one.numel() for one in TinyBertHidden([3] * 5, [4] * 5).parameters()) == 3 * 4 + 4
    with pytest.raises(kdplug.ShapeError, match=r"the teacher's layers are \[4, 6\] wide"):
        TinyBertHidden([3, 3], [4, 6])


class TestTinyBertHidden(LossLaws):
    entry = TinyBertHidden
    layers = 2
    may_differ = (2,)
    shape, teacher_shape = (4, 5, 6), (4, 5, 7)
    non_negative = True
    trains = ("fit.weight", "fit.bias")


def mean_soft_cross_entropy(student_logits, teacher_logits, temperature):
    total, classes = 0.0, student_logits.shape[-1]
    rows = zip(student_logits.reshape(-1, classes).tolist(), teacher_logits.reshape(-1, classes).tolist(), strict=True)
    for own, other in rows:
        q, p = (softmax([value / temperature for value in row]) for row in (own, other))
        total -= sum(b * math.log(a) for a, b in zip(q, p, strict=True))
    return torch.tensor(total / student_logits.numel(), dtype=torch.float64)


class TestTinyBertPrediction(LossLaws):
    entry = tinybert_prediction
    shape = (4, 5, 7)
    non_negative = reaches_teacher = corrects_confident_mistakes = True
    t2 = False
    oracle = staticmethod(mean_soft_cross_entropy)
