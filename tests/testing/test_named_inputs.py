"""Laws for losses that read extras and parameters."""
# ruff: noqa: RUF012  # a law class is a declaration, as an author writes it

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdplug.contracts.loss import LossSum
from kdplug.errors import PluginError
from kdplug.testing import LossLaws, broken_laws, law_names


def relation(student_extras, teacher_extras, mask=None) -> LossSum:
    """Compare what each token's values are to themselves."""
    ours, theirs = (
        torch.stack([one.float() if one.element_size() < 4 else one for one in extras.values()])
        for extras in (student_extras, teacher_extras)
    )
    if ours.shape[:-1] != theirs.shape[:-1]:
        raise ValueError("shapes differ")
    if mask is None:
        mask = torch.ones(ours.shape[1:3], dtype=torch.bool)
    if mask.shape != ours.shape[1:3]:
        raise ValueError("mask")
    squares = (torch.where(mask.unsqueeze(-1), one, 0).square().mean(-1) for one in (ours, theirs))
    return LossSum(sum_of(squares, mask), mask.sum())


def sum_of(squares, mask) -> Tensor:
    ours, theirs = squares
    return torch.where(mask, (ours - theirs.detach()).abs(), 0).sum()


class TestRelation(LossLaws):
    entry = relation
    student_extras = {"keys": (3, 4, 6), "values": (3, 4, 6)}
    teacher_extras = {"keys": (3, 4, 8), "values": (3, 4, 8)}
    non_negative = True
    zero_at_equality = True
    except_for = {"test_gradient_agrees_with_finite_differences": "its absolute value has a kink"}


def through_head(student_features, teacher_features, teacher_parameters) -> LossSum:
    """Compare features after the teacher's classifier."""
    weight = teacher_parameters["fc:parameter.weight"].detach()
    if student_features.shape != teacher_features.shape:
        raise ValueError("shapes differ")
    half = student_features.dtype in (torch.float16, torch.bfloat16)
    ours, theirs, weight = (
        one.float() if half else one for one in (student_features, teacher_features.detach(), weight)
    )
    with torch.autocast("cpu", enabled=False):
        error = ((ours - theirs) @ weight.T).square().mean(-1)
    return LossSum(error.sum(), error.numel())


class TestThroughHead(LossLaws):
    entry = through_head
    shape = (3, 6)
    teacher_parameters = {"fc:parameter.weight": (5, 6)}
    non_negative = True
    zero_at_equality = True


def weighted(student_logits, teacher_logits, teacher_extras) -> LossSum:
    """Weigh the error of each example."""
    if student_logits.shape != teacher_logits.shape:
        raise ValueError("shapes differ")
    error = (student_logits.float() if student_logits.element_size() < 4 else student_logits) - teacher_logits.detach()
    return LossSum((error.square().mean(-1) * teacher_extras["weight"].detach().square()).sum(), len(error))


class TestWeighted(LossLaws):
    entry = weighted
    shape = (3, 5)
    student_extras = {"weight": (3,)}
    non_negative = True
    zero_at_equality = True
    except_for = {"test_a_class_that_the_teacher_rules_out_stays_finite": "it compares logits"}


def detached(student_extras, teacher_extras) -> LossSum:
    """Lose the gradient."""
    ours = student_extras["values"].detach()
    return LossSum((ours - teacher_extras["values"]).square().sum(), len(ours))


def first_example(student_extras, teacher_extras):
    """Compare each example with the first one's teacher."""
    return (student_extras["values"] - teacher_extras["values"][:1]).square().mean()


@pytest.mark.parametrize(
    ("loss", "law"),
    [
        (detached, "test_gradient_reaches_the_student"),
        (first_example, "test_the_order_of_examples_does_not_matter"),
        (first_example, "test_it_is_zero_where_student_equals_teacher"),
    ],
)
def test_laws_find_wrong_losses_on_extras(loss, law):
    class Wrong(LossLaws):
        entry = loss
        student_extras = {"values": (3, 4, 6)}
        zero_at_equality = True

    assert law in broken_laws(Wrong)


def test_shapes_have_to_be_declared():
    with pytest.raises(PluginError, match="Undeclared must declare student_extras: the shapes of what the loss reads"):

        class Undeclared(LossLaws):
            entry = detached

    class Parameters(LossLaws):
        entry = through_head

    assert "must declare teacher_parameters" in broken_laws(Parameters)["test_it_returns_a_finite_scalar"]
    with pytest.raises(PluginError, match="the extras of one side must have the same shape, got"):

        class Unequal(LossLaws):
            entry = detached
            student_extras = {"values": (3, 4), "keys": (3, 5)}


def test_laws_of_masks_apply_to_extras():
    assert "test_padding_changes_nothing" in law_names(TestRelation)
