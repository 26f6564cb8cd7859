"""EAGLE's draft loss, against a formula written token by token."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from by_element import draw, masked, softmax
from kdplug_papers.draft import eagle_draft

import kdplug
from kdplug.testing import LossLaws

EXACT = {"rtol": 1e-12, "atol": 1e-12}
LENGTHS = (4, 2, 0)
WEIGHT, BIAS = "lm_head:parameter.weight", "lm_head:parameter.bias"


def read_off(head, bias, feature):
    """The distribution of tokens that a head gives for one feature."""
    return softmax(
        [sum(a * b for a, b in zip(row, feature, strict=True)) + add for row, add in zip(head, bias, strict=True)]
    )


@pytest.mark.parametrize("biased", [False, True])
def test_eagle_adds_a_smooth_distance_and_a_cross_entropy_through_the_teachers_head(biased):
    student, teacher, head = draw(3, 4, 5), 2 * draw(3, 4, 5, seed=1), draw(7, 5, seed=2)
    bias = draw(7, seed=3) if biased else torch.zeros(7, dtype=torch.float64)
    total = 0.0
    for text, length in enumerate(LENGTHS):
        for token in range(length):
            s, t = student[text, token].tolist(), teacher[text, token].tolist()
            gaps = [abs(a - b) for a, b in zip(s, t, strict=True)]
            q, p = (read_off(head.tolist(), bias.tolist(), one) for one in (s, t))
            total += sum(gap - 0.5 if gap > 1 else gap**2 / 2 for gap in gaps) / 5
            total -= 0.1 * sum(b * math.log(a) for a, b in zip(q, p, strict=True))
    parameters = {WEIGHT: head, BIAS: bias} if biased else {WEIGHT: head}
    found = eagle_draft(student, teacher, parameters, masked(LENGTHS, 4))
    torch.testing.assert_close(found.value.item(), total / sum(LENGTHS), **EXACT)
    assert found.count == sum(LENGTHS)


def test_padding_of_eagle_may_hold_anything():
    head = {WEIGHT: draw(7, 5, seed=2)}
    student, teacher = draw(3, 4, 5), draw(3, 4, 5, seed=1)
    expected = eagle_draft(student, teacher, head, masked(LENGTHS, 4)).value
    student[~masked(LENGTHS, 4)], teacher[~masked(LENGTHS, 4)] = math.nan, math.inf
    student.requires_grad_()
    value = eagle_draft(student, teacher, head, masked(LENGTHS, 4)).value
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, student)
    assert (gradient[~masked(LENGTHS, 4)] == 0).all()
    assert gradient.isfinite().all()


def test_a_head_of_another_width_is_named():
    features = draw(3, 4, 5)
    with pytest.raises(
        kdplug.ShapeError, match=r"lm_head:parameter.weight \[7, 6\] is no head of features \[3, 4, 5\]"
    ):
        eagle_draft(features, features, {WEIGHT: draw(7, 6)})
    with pytest.raises(kdplug.OutputsError, match="a head's weight and its bias, got a, b, c"):
        eagle_draft(features, features, dict.fromkeys("abc", draw(7, 5)))


class TestEagleDraft(LossLaws):
    entry = eagle_draft
    shape = (4, 5, 6)
    teacher_parameters: ClassVar = {WEIGHT: (7, 6)}
    non_negative = True
