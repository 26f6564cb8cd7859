"""DistiLLM-2 and MiniLLM on whole sequences, against formulas written token by token."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from by_element import draw, masked, softmax
from kdplug_papers.sequences import distillm2, minillm

import kdplug
from kdplug.testing import LossLaws

EXACT = {"rtol": 1e-12, "atol": 1e-12}
LENGTHS = (4, 2, 0, 3)
"""Tokens of each text that count, of 4: one text has none."""


def divergence(first, second):
    return sum(a * math.log(a / b) for a, b in zip(first, second, strict=True))


def mixed(first, second, share):
    return [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_distillm2_takes_the_divergence_of_the_writer_as_a_mean_over_texts(weight):
    student, teacher = draw(4, 4, 7), draw(4, 4, 7, seed=1)
    by_student, total = [True, False, True, False], 0.0
    for text, length in enumerate(LENGTHS):
        for token in range(length):
            q, p = softmax(student[text, token].tolist()), softmax(teacher[text, token].tolist())
            value = (
                2 * weight * divergence(q, mixed(q, p, 0.1))
                if by_student[text]
                else 2 * (1 - weight) * divergence(p, mixed(p, q, 0.1))
            )
            total += value / length
    extras = {"from_student": torch.tensor(by_student)}
    found = distillm2(student, teacher, extras, masked(LENGTHS, 4), student_weight=weight)
    torch.testing.assert_close(found.value.item(), total / 3, **EXACT)
    assert found.count == 3


def test_distillm2_stays_finite_if_a_side_rules_a_token_out():
    student, teacher = draw(2, 3, 5), draw(2, 3, 5, seed=1)
    student[..., 1], teacher[..., 2] = -math.inf, -math.inf
    student[:, 1, 3] = teacher[:, 1, 3] = -math.inf
    student.requires_grad_()
    extras = {"from_student": torch.tensor([1, 0])}
    value = distillm2(student, teacher, extras, torch.ones(2, 3, dtype=torch.bool)).value
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_distillm2_names_what_is_missing():
    logits, mask = draw(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(kdplug.OutputsError, match=r"distillm2 needs extras: \[from_student\] in its term, got author"):
        distillm2(logits, logits, {"author": torch.ones(2)}, mask)
    with pytest.raises(kdplug.ShapeError, match=r"from_student must be \[2\], got \[2, 3\]"):
        distillm2(logits, logits, {"from_student": torch.ones(2, 3, dtype=torch.int64)}, mask)
    with pytest.raises(kdplug.OutputsError, match=r"from_student must be bool or integers, got torch\.float32"):
        distillm2(logits, logits, {"from_student": torch.tensor([0.5, 1.0])}, mask)
    with pytest.raises(kdplug.SettingError, match="must be < 1, got 1"):
        distillm2(logits, logits, {"from_student": torch.tensor([1, 0])}, mask, skew=1.0)


@pytest.mark.parametrize("normalize", [True, False])
def test_minillm_has_the_value_of_the_divergence_and_the_gradient_of_later_rewards_too(normalize):
    student, teacher = draw(4, 4, 6).requires_grad_(), draw(4, 4, 6, seed=1)
    labels = torch.randint(6, (4, 4), generator=torch.Generator().manual_seed(2)).masked_fill(~masked(LENGTHS, 4), -100)
    value, gradient = 0.0, torch.zeros_like(student)
    for text, length in enumerate(LENGTHS):
        q, p = ([softmax(row) for row in side[text].tolist()] for side in (student, teacher))
        chosen = labels[text].tolist()
        reward = [math.log(p[token][chosen[token]] / q[token][chosen[token]]) for token in range(length)]
        for token in range(length):
            later = reward[token + 1 :]
            mean = sum(later) / (len(later) or 1) if normalize else sum(later)
            exact = divergence(q[token], p[token])
            value += exact
            for word, (a, b) in enumerate(zip(q[token], p[token], strict=True)):
                of_policy = -mean * ((word == chosen[token]) - a)
                gradient[text, token, word] = a * (math.log(a / b) - exact) + of_policy
    found = minillm(student, teacher, {"sampled": labels}, masked(LENGTHS, 4), normalize_length=normalize)
    torch.testing.assert_close(found.value.item(), value / sum(LENGTHS), **EXACT)
    torch.testing.assert_close(torch.autograd.grad(found.total, student)[0], gradient, **EXACT)
    assert found.count == sum(LENGTHS)


def test_the_gradient_of_minillm_is_that_of_the_divergence_of_whole_texts():
    """The expected gradient over all texts of the student is that of KL(q‖p) of texts, if no length is normalized."""
    words, length = 3, 3
    student = draw(words, words).requires_grad_()
    teacher = draw(words, words, seed=1)

    def logits(table, texts):  # a bigram model: each token depends on the one before it, the first on word 0
        before = torch.cat([torch.zeros(len(texts), 1, dtype=torch.long), texts[:, :-1]], dim=1)
        return table[before]

    texts = torch.cartesian_prod(*[torch.arange(words)] * length)
    log_q, log_p = (
        logits(table, texts).log_softmax(-1).gather(-1, texts.unsqueeze(-1)).sum((1, 2)) for table in (student, teacher)
    )
    (expected,) = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), student)
    found = torch.zeros_like(student)
    for text, share in zip(texts, log_q.detach().exp(), strict=True):
        one = text[None]
        mask = torch.ones_like(one, dtype=torch.bool)
        loss = minillm(logits(student, one), logits(teacher, one), {"sampled": one}, mask, normalize_length=False)
        found += share * torch.autograd.grad(loss.total, student)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_minillm_counts_only_tokens_that_the_student_sampled():
    student, teacher = draw(2, 4, 5), draw(2, 4, 5, seed=1)
    sampled, mask = torch.tensor([[1, 0, 3, 2], [4, 2, 0, 1]]), torch.ones(2, 4, dtype=torch.bool)
    expected = minillm(student[:, 2:], teacher[:, 2:], {"sampled": sampled[:, 2:]}, mask[:, 2:])
    sampled[:, :2] = -100
    found = minillm(student, teacher, {"sampled": sampled}, mask)
    torch.testing.assert_close(found.value, expected.value)
    assert found.count == 4
    with pytest.raises(kdplug.OutputsError, match=r"minillm needs extras: \[sampled\] in its term, got nothing"):
        minillm(student, teacher, {}, mask)


def test_minillm_stays_finite_if_the_teacher_rules_out_what_the_student_wrote():
    student, teacher = draw(2, 3, 5).requires_grad_(), draw(2, 3, 5, seed=1)
    teacher[..., 1] = -math.inf
    sampled = {"sampled": torch.ones(2, 3, dtype=torch.long)}
    value = minillm(student, teacher, sampled, torch.ones(2, 3, dtype=torch.bool)).value
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()


@kdplug.whole_sequences
def by_sign(student_logits, teacher_logits, student_extras, mask) -> kdplug.LossSum:
    """``distillm2`` for the laws, whose extras are any numbers."""
    return distillm2(student_logits, teacher_logits, {name: one > 0 for name, one in student_extras.items()}, mask)


class TestDistillm2(LossLaws):
    entry = by_sign
    shape = (4, 5, 6)
    student_extras: ClassVar = {"from_student": (4,)}
    non_negative = zero_at_equality = ignores_impossible_classes = reaches_teacher = True

    def test_the_laws_have_texts_of_both_writers(self) -> None:
        signs = self.sample().values()["student_extras"]["from_student"] > 0
        assert 0 < signs.sum() < len(signs)


@kdplug.whole_sequences
def of_labels(student_logits, teacher_logits, labels, mask) -> kdplug.LossSum:
    """``minillm`` for the laws, whose labels are tokens."""
    return minillm(student_logits, teacher_logits, {"sampled": labels}, mask)


class TestMiniLLM(LossLaws):
    entry = of_labels
    shape = (4, 5, 6)
    non_negative = zero_at_equality = ignores_impossible_classes = True
    except_for: ClassVar = {
        "test_gradient_agrees_with_finite_differences": "its gradient is that of the divergence of whole texts",
    }
