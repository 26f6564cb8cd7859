"""ALP-KD, BERT-EMD and its transport plans, against formulas written element by element."""
# ruff: noqa: RUF012  # a law class is a declaration

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from by_element import dot, draw, masked, several, softmax
from kdplug_papers.layers import BertEmd, alp_kd
from kdplug_papers.transport import cheapest_plan

import kdplug
from kdplug.testing import LossLaws

EXACT = {"rtol": 1e-9, "atol": 1e-12}
LENGTHS = (5, 3, 0, 1)


def test_alp_kd_mixes_all_teacher_layers_for_each_student_layer():
    student, teacher = several(2, 4, 5, 3), several(6, 4, 5, 3, seed=8)
    total = 0.0
    for layer in student:
        for example in range(4):
            own = layer[example, 0].tolist()
            theirs = [other[example, 0].tolist() for other in teacher]
            attention = softmax([dot(own, other) for other in theirs])
            for unit in range(3):
                mixture = sum(share * other[unit] for share, other in zip(attention, theirs, strict=True))
                total += (own[unit] - mixture) ** 2
    torch.testing.assert_close(alp_kd(student, teacher).value.item(), total / (4 * 3), **EXACT)


def test_alp_kd_names_layers_of_another_width():
    with pytest.raises(kdplug.ShapeError, match=r"alp_kd needs the same shape .*\[4, 5, 3\].*\[4, 5, 6\]"):
        alp_kd(several(2, 4, 5, 3), several(3, 4, 5, 6))


class TestAlpKd(LossLaws):
    entry = alp_kd
    layers = 3
    shape = (4, 5, 6)
    token_axes = ()
    non_negative = True
    except_for = {
        "test_no_student_is_better_than_the_teacher_itself": "a mixture of layers is none of them",
    }


def cheapest_cost(supply, demand, costs):
    """The least cost over all plans with at most rows + columns − 1 positive amounts, of which one is optimal."""
    rows, columns = len(supply), len(demand)
    cells = list(itertools.product(range(rows), range(columns)))
    best = math.inf
    for chosen in itertools.combinations(cells, rows + columns - 1):
        sums = np.zeros((rows + columns, len(chosen)))
        for place, (row, column) in enumerate(chosen):
            sums[row, place] = sums[rows + column, place] = 1
        amounts, _, rank, _ = np.linalg.lstsq(sums, np.array([*supply, *demand]), rcond=None)
        if rank == len(chosen) and (amounts > -1e-9).all():
            best = min(
                best, sum(amount * costs[row][column] for amount, (row, column) in zip(amounts, chosen, strict=True))
            )
    return best


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (2, 4), (3, 3), (3, 4)])
def test_a_plan_is_feasible_and_the_cheapest(rows, columns, seed):
    generator = np.random.default_rng(seed)
    supply, demand = (generator.dirichlet(np.ones(number)) for number in (rows, columns))
    if seed % 3 == 0:
        supply, demand = np.full(rows, 1 / rows), np.full(columns, 1 / columns)  # many plans have zero amounts
    costs = generator.random((rows, columns))
    plan = np.array(cheapest_plan(supply.tolist(), demand.tolist(), costs.tolist()))
    np.testing.assert_allclose(plan.sum(1), supply, atol=1e-9)
    np.testing.assert_allclose(plan.sum(0), demand, atol=1e-9)
    assert plan.min() > -1e-12
    np.testing.assert_allclose((plan * costs).sum(), cheapest_cost(supply, demand, costs), rtol=1e-9)


def cost_of_attention(student, teacher, heads):
    def score(features, example, head, row, column):
        size = features[0].shape[-1] // heads
        part = slice(head * size, (head + 1) * size)
        query, key = (
            feature[example, place, part].tolist() for feature, place in zip(features, (row, column), strict=True)
        )
        return dot(query, key) / math.sqrt(size)

    errors = [
        (score(student, *place) - score(teacher, *place)) ** 2
        for example, length in enumerate(LENGTHS)
        for place in itertools.product([example], range(heads), range(length), range(length))
    ]
    return sum(errors) / len(errors)


def cost_of_hidden(student, teacher, fit):
    errors = []
    for example, length in enumerate(LENGTHS):
        for token in range(length):
            for unit, (weight, bias) in enumerate(zip(fit.weight.tolist(), fit.bias.tolist(), strict=True)):
                fitted = dot(weight, student[example, token].tolist()) + bias
                errors.append((fitted - float(teacher[example, token, unit])) ** 2)
    return sum(errors) / len(errors)


def updated(weights, spent, smooth=True):
    """The authors' cost attention of one side, where ``spent`` is the cost that each layer's flow has."""
    costs = [one / weight for one, weight in zip(spent, weights, strict=True)]
    return softmax([sum(costs) / cost if cost else 0.0 for cost in costs])


def layers_of(features):
    return [features[place : place + 3] for place in range(0, len(features), 3)]


def test_bert_emd_adds_two_distances_and_updates_the_weights_of_layers():
    torch.manual_seed(0)
    heads, loss = 2, BertEmd([4, 4, 3] * 2, [6, 6, 5] * 3, heads=2).double()
    student = tuple(draw(4, 5, width, seed=place) for place, width in enumerate([4, 4, 3] * 2))
    teacher = tuple(draw(4, 5, width, seed=50 + place) for place, width in enumerate([6, 6, 5] * 3))
    own, other = layers_of(student), layers_of(teacher)
    costs = [
        [[cost_of_attention(s[:2], t[:2], heads) for t in other] for s in own],
        [[cost_of_hidden(s[2], t[2], loss.fit) for t in other] for s in own],
    ]
    student_weights, teacher_weights = [1 / 2] * 2, [1 / 3] * 3
    for _ in range(3):
        expected = sum(cheapest_cost(student_weights, teacher_weights, cost) for cost in costs)
        new = [[], []]
        for cost in costs:
            plan = cheapest_plan(student_weights, teacher_weights, cost)
            spent = np.array(plan) * np.array(cost)
            new[0].append(updated(student_weights, spent.sum(1).tolist()))
            new[1].append(updated(teacher_weights, spent.sum(0).tolist()))
        torch.testing.assert_close(loss(student, teacher, masked(LENGTHS, 5)).item(), expected, **EXACT)
        student_weights, teacher_weights = (softmax(np.mean(side, axis=0).tolist()) for side in new)
        for buffer, values in ((loss.student_weights, student_weights), (loss.teacher_weights, teacher_weights)):
            torch.testing.assert_close(buffer.tolist(), [values, values], **EXACT)


def test_bert_emd_keeps_its_weights_in_evaluation_and_in_a_batch_without_tokens():
    loss = BertEmd([4, 4, 4], [4, 4, 4] * 2, heads=2).double()
    features = several(3, 4, 5, 4), several(6, 4, 5, 4, seed=9)
    before = loss.teacher_weights.clone()
    assert loss(*features, torch.zeros(4, 5, dtype=torch.bool)) == 0
    loss.eval()(*features)
    assert torch.equal(loss.teacher_weights, before)
    loss.train()(*features)
    assert not torch.equal(loss.teacher_weights, before)


def test_bert_emd_may_have_separate_weights():
    loss = BertEmd([4, 4, 4], [4, 4, 4] * 2, heads=2, separate=True, smooth=False, weight_temperature=3.0).double()
    loss(several(3, 4, 5, 4), several(6, 4, 5, 4, seed=9))
    assert not torch.equal(loss.teacher_weights[0], loss.teacher_weights[1])
    torch.testing.assert_close(loss.teacher_weights.sum(1), torch.ones(2, dtype=torch.float64))


def test_bert_emd_names_a_list_that_is_no_multiple_of_three():
    with pytest.raises(
        kdplug.OutputsError, match="a query, a key and a hidden state per layer, got 4 teacher features"
    ):
        BertEmd([4] * 3, [4] * 4, heads=2)


class TestBertEmd(LossLaws):
    entry = BertEmd
    settings = {"heads": 3}
    layers = 6
    may_differ = (2,)
    shape, teacher_shape, large_shape = (4, 5, 6), (4, 5, 9), (300, 80, 6)
    non_negative = True
    trains = ("fit.weight", "fit.bias")
    except_for = {
        "test_torch_compile_traces_it_whole": "it solves a linear program outside the graph",
    }
