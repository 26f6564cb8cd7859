"""MarginMSE and list-wise KL divergence of candidate scores, against formulas written element by element."""
# ruff: noqa: RUF012  # a law class is a declaration

from __future__ import annotations

import math

import pytest
import torch
from by_element import draw
from kdplug_papers.retrieval import margin_mse, score_kl

import kdplug
from kdplug.testing import LossLaws

EXACT = {"rtol": 1e-12, "atol": 1e-12}
MISSING = -math.inf


def rows(student, teacher):
    width = student.shape[-1]
    return zip(student.reshape(-1, width).tolist(), teacher.reshape(-1, width).tolist(), strict=True)


def mean_margin_error(student_logits, teacher_logits):
    errors = [
        ((own[0] - own[place]) - (other[0] - other[place])) ** 2
        for own, other in rows(student_logits, teacher_logits)
        for place in range(1, len(own))
        if MISSING not in (other[0], other[place])
    ]
    return torch.tensor(sum(errors) / len(errors), dtype=torch.float64)


def rescaled(student_logits, teacher_logits, temperature, teacher_temperature):
    total, queries = 0.0, 0
    for own, other in rows(student_logits, teacher_logits):
        kept = [place for place, score in enumerate(other) if score > MISSING]
        q = [math.exp(own[place] / temperature) for place in kept]
        p = [math.exp(other[place] / teacher_temperature) for place in kept]
        divergence = sum(b / sum(p) * math.log((b / sum(p)) / (a / sum(q))) for a, b in zip(q, p, strict=True))
        total, queries = total + temperature**2 * divergence, queries + 1
    return torch.tensor(total / queries, dtype=torch.float64)


def listwise(student_logits, teacher_logits, temperature):
    return rescaled(student_logits, teacher_logits, temperature, temperature)


def incomplete(filling):
    """Scores of four queries with 3, 5, 2 and 4 candidates; beyond them the student's scores are ``filling``."""
    student, teacher = draw(4, 5), draw(4, 5, seed=1)
    for query, candidates in enumerate((3, 5, 2, 4)):
        student[query, candidates:], teacher[query, candidates:] = filling, MISSING
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("filling", [MISSING, 3.0])
@pytest.mark.parametrize(
    ("loss", "expected", "settings"),
    [
        (margin_mse, mean_margin_error, {}),
        (score_kl, listwise, {"temperature": 2.0}),
        (score_kl, rescaled, {"temperature": 2.0, "teacher_temperature": 5.0}),
    ],
)
def test_queries_may_have_different_numbers_of_candidates(loss, expected, settings, filling):
    student, teacher = incomplete(filling)
    value = loss(student, teacher, **settings).value
    torch.testing.assert_close(value, expected(student, teacher, **settings), **EXACT)
    (gradient,) = torch.autograd.grad(value, student)
    assert (gradient[teacher == MISSING] == 0).all()
    assert (gradient[teacher > MISSING] != 0).all()


def test_a_single_candidate_is_refused():
    for loss in (margin_mse, score_kl):
        with pytest.raises(kdplug.ShapeError, match="at least two candidates"):
            loss(draw(4, 1), draw(4, 1))


def test_a_teacher_temperature_of_zero_is_refused():
    with pytest.raises(kdplug.SettingError, match="must be > 0, got 0"):
        score_kl(draw(4, 2), draw(4, 2), teacher_temperature=0)


class TestMarginMse(LossLaws):
    entry = margin_mse
    shape = (4, 6)
    non_negative = zero_at_equality = reaches_teacher = corrects_confident_mistakes = True
    oracle = staticmethod(mean_margin_error)


class TestScoreKl(LossLaws):
    entry = score_kl
    shape = (4, 6)
    non_negative = zero_at_equality = reaches_teacher = ignores_impossible_classes = t2 = True
    corrects_confident_mistakes = True
    oracle = staticmethod(listwise)


class TestScoreKlOfATeacherOnAnotherScale(LossLaws):
    entry = score_kl
    settings = {"teacher_temperature": 3.0}
    shape = (4, 6)
    non_negative = True
    oracle = staticmethod(
        lambda student_logits, teacher_logits, temperature: rescaled(student_logits, teacher_logits, temperature, 3.0)
    )
    except_for = {
        "test_no_student_is_better_than_the_teacher_itself": "the best student's scores are those of the teacher, rescaled",
    }
