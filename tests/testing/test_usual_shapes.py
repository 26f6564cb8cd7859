"""Shapes by name, several layers of different shapes, and losses on features and logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from testing.specimen import at_least_float32, laws_of
from torch import Tensor, nn
from torch.nn import functional

import kdplug
from kdplug import LossSum
from kdplug.errors import PluginError
from kdplug.testing import LossLaws, broken_laws
from kdplug.testing.loss.case import USUAL_SHAPES, LossCase


class StageLaws(LossLaws):
    shape = ["maps", (3, 6, 7, 2), "pooled"]  # noqa: RUF012
    non_negative = zero_at_equality = True


def stages(student_features: Any, teacher_features: Any) -> LossSum:
    """Squared error of each stage, mean over its entries, summed over stages."""
    if [one.shape for one in student_features] != [one.shape for one in teacher_features]:
        raise kdplug.ShapeError("stages differ")
    gaps = [
        (at_least_float32(one) - at_least_float32(two.detach())).square().flatten(1).mean(1)
        for one, two in zip(student_features, teacher_features, strict=True)
    ]
    return LossSum(torch.stack(gaps).sum(), len(gaps[0]))


def first_stage_alone(student_features: Any, teacher_features: Any) -> LossSum:
    """Forgets the later stages."""
    if [one.shape for one in student_features] != [one.shape for one in teacher_features]:
        raise kdplug.ShapeError("stages differ")
    return stages(student_features[:1], teacher_features[:1])


def test_layers_of_different_shapes_are_put_under_the_laws() -> None:
    assert broken_laws(laws_of(StageLaws, stages)) == {}
    found = broken_laws(laws_of(StageLaws, first_stage_alone))
    assert list(found) == ["test_gradient_reaches_the_student"]
    assert found["test_gradient_reaches_the_student"].startswith(
        "the gradient does not reach the student layer 1: it is 0 everywhere"
    )


@kdplug.any_layers
def nearest(student_features: Any, teacher_features: Any) -> LossSum:
    """Squared distance to the mean of the teacher's layers, mean over tokens and the student's layers."""
    theirs = torch.stack([at_least_float32(one.detach()) for one in teacher_features]).mean(0)
    if any(one.shape != theirs.shape for one in student_features):
        raise kdplug.ShapeError("shapes differ")
    gaps = [(at_least_float32(one) - theirs).square().mean(-1) for one in student_features]
    return LossSum(torch.stack(gaps).mean(0).sum(), gaps[0].numel())


def test_lists_of_different_lengths_are_put_under_the_laws() -> None:
    given: dict[str, Any] = {"shape": ["sequences", "sequences"], "teacher_shape": ["sequences"] * 3}
    assert broken_laws(laws_of(LossLaws, nearest, non_negative=True, **given)) == {}


class Head(nn.Module):
    """Squared error of features and of logits, after a linear layer (as in SRRL)."""

    own_parameters = True

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_dim, out_dim)

    def forward(
        self, student_features: Tensor, teacher_features: Tensor, student_logits: Tensor, teacher_logits: Tensor
    ) -> LossSum:
        """Compute the loss."""
        pairs = (self.layer(student_features), teacher_features), (student_logits, teacher_logits)
        if any(one.shape != two.shape for one, two in pairs):
            raise kdplug.ShapeError("shapes differ")
        gap = sum((at_least_float32(one) - two.detach()).square().mean(-1) for one, two in pairs)
        assert isinstance(gap, Tensor)
        return LossSum(gap.sum(), gap.numel())


class Careless(Head):
    """Forgets to detach the teacher's logits and to read the student's."""

    own_parameters = True

    def forward(self, student_features: Tensor, teacher_features: Tensor, student_logits: Tensor, teacher_logits: Tensor) -> LossSum:  # fmt: skip
        """Compute the loss."""
        total, count = super().forward(student_features, teacher_features, student_logits.detach(), teacher_logits)
        return LossSum(total + functional.softplus(teacher_logits).sum(), count)


@pytest.mark.parametrize("shape", ["pooled", "sequences", "relations"])
def test_a_loss_on_features_and_logits_is_put_under_the_laws(shape: str) -> None:
    trained: dict[str, Any] = {"shape": shape, "trains": ("layer.weight", "layer.bias")}
    if shape != "relations":
        trained["may_differ"] = (-1,)
    assert broken_laws(laws_of(LossLaws, Head, **trained)) == {}


def test_the_logits_of_a_loss_on_features_are_watched_too() -> None:
    found = broken_laws(laws_of(LossLaws, Careless, shape="pooled", may_differ=(-1,)))
    assert found["test_gradient_reaches_the_student"].startswith("the gradient does not reach the student's logits")
    assert "the gradient reaches the teacher" in found["test_gradient_never_reaches_the_teacher"]


@pytest.mark.parametrize("name", sorted({*USUAL_SHAPES} - {"attention"}))
def test_the_sizes_of_a_usual_shape_differ(name: Any) -> None:
    class Case(LossCase):
        entry = staticmethod(stages)
        shape = name

    layout = Case.layout_of()
    assert all(len(set(one)) == len(one) for one in (layout.student, layout.teacher))


def test_a_fact_gives_the_shapes_unless_the_test_does() -> None:
    @kdplug.facts(shapes=["maps", "pooled"])
    def stated(student_features: Any, teacher_features: Any) -> LossSum:
        """Squared error of two stages."""
        return stages(student_features, teacher_features)

    assert laws_of(LossLaws, stated).layout_of().student_shapes == (USUAL_SHAPES["maps"], USUAL_SHAPES["pooled"])
    assert laws_of(LossLaws, stated, shape="pooled").layout_of().student_shapes == (USUAL_SHAPES["pooled"],)


def test_a_shape_of_another_name_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no usual shape named 'map'\. Did you mean 'maps'"):
        laws_of(LossLaws, stages, shape="map")
