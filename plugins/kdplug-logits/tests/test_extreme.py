"""Logits of any size, and classes that are ruled out, on either side."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logits_strategies import LABELLED, LOSSES, Case, case, cases, finite, rule_out, seeds

INF = math.inf
every = pytest.mark.parametrize("name", LOSSES)
NOT_ON_NUMBERS = pytest.mark.parametrize("name", [name for name in LOSSES if name != "regression"])
BOUNDED = ("jsd", "skew_kl", "skew_reverse_kl", "tvd", "uld", "alpha_beta", "dist")
"""Finite whatever either side rules out."""
examples = settings(max_examples=15, deadline=None)


@NOT_ON_NUMBERS
@given(drawn=cases(torch.float32), seed=seeds)
@examples
def test_classes_that_the_teacher_rules_out_leave_value_and_gradient_finite(name: str, drawn: Case, seed: int) -> None:
    drawn.teacher = rule_out(drawn.teacher, seed)
    assert finite(drawn.loss(name).value, drawn.gradient(name))


@NOT_ON_NUMBERS
@given(drawn=cases(torch.float32), seed=seeds, both=st.booleans())
@examples
def test_classes_that_the_student_rules_out_give_no_nan_and_a_finite_gradient(
    name: str, drawn: Case, seed: int, both: bool
) -> None:
    drawn.student = rule_out(drawn.student, seed)
    drawn.teacher = rule_out(drawn.teacher, seed + 1) if both else drawn.teacher
    value = drawn.loss(name).value
    assert not value.isnan()
    assert value > -1e3
    assert finite(drawn.gradient(name))
    assert name not in BOUNDED or finite(value)


@NOT_ON_NUMBERS
@given(drawn=cases(torch.float32), seed=seeds)
@examples
def test_classes_that_both_sides_rule_out_are_as_if_they_were_not_there(name: str, drawn: Case, seed: int) -> None:
    out = torch.full((*drawn.student.shape[:-1], 2), -INF)
    wide = Case(torch.cat([drawn.student, out], -1), torch.cat([drawn.teacher, out], -1), drawn.labels)
    wide.temperature = drawn.temperature
    if name in ("sampled", "dist"):  # other draws; a mean over classes
        assert finite(wide.loss(name).value, wide.gradient(name))
        return
    assert torch.allclose(wide.loss(name).value, drawn.loss(name).value, rtol=1e-5, atol=1e-6)
    assert torch.allclose(wide.gradient(name)[..., :-2], drawn.gradient(name), rtol=1e-4, atol=1e-6)
    assert not wide.gradient(name)[..., -2:].any()


@every
@given(seed=seeds, temperature=st.sampled_from([0.1, 1.0, 10.0]))
@examples
def test_logits_of_ten_thousand_stay_finite_and_near_float64(name: str, seed: int, temperature: float) -> None:
    found = case(4, 7, seed=seed, scale=1e4, dtype=torch.float32)
    found.temperature = temperature
    value, gradient = found.loss(name).value, found.gradient(name)
    exact = Case(found.student.double(), found.teacher.double(), found.labels, temperature)
    assert finite(value, gradient)
    assert torch.allclose(value.double(), exact.loss(name).value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["kl", "topk", "dkd", "bce", "logit_std", "adaptive_kl"])
def test_a_class_that_only_the_student_rules_out_is_infinitely_bad_with_a_finite_gradient(name: str) -> None:
    found = case(3, 5)
    found.student[1, 2] = -INF
    assert found.loss(name).value.item() == INF
    assert finite(found.gradient(name))


def test_the_gradient_of_an_infinite_kl_is_that_of_its_formula() -> None:
    found = case(1, 5)
    found.student[0, 2] = -INF
    expected = found.student.softmax(-1) - found.teacher.softmax(-1)
    assert torch.allclose(found.gradient("kl"), expected)


@pytest.mark.parametrize("name", ["reverse_kl", "adaptive_kl", "alpha_beta", "jsd"])
def test_a_loss_that_would_be_infinite_takes_the_teachers_ruled_out_class_from_the_student(name: str) -> None:
    given: dict[str, Any] = {"alpha_beta": {"alpha": 0, "beta": 1}, "jsd": {"beta": 1}}.get(name, {})
    found = case(3, 5)
    found.teacher[:, 2] = -INF
    kept = [0, 1, 3, 4]
    narrow = Case(found.student[:, kept], found.teacher[:, kept], found.labels)
    assert torch.allclose(found.loss(name, **given).value, narrow.loss(name, **given).value)
    assert not found.gradient(name, **given)[:, 2].any()


@pytest.mark.parametrize("name", ["reverse_kl", "adaptive_kl"])
def test_sides_that_share_no_class_are_infinitely_far_apart(name: str) -> None:
    found = Case(torch.tensor([[0.0, -INF]]), torch.tensor([[-INF, 0.0]]), torch.zeros(1))
    assert found.loss(name).value.item() == INF
    assert finite(found.gradient(name))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("bce", "regression", "ranking")])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_item_whose_every_class_is_ruled_out_gives_nan_and_never_a_number(name: str, side: str) -> None:
    found = case(3, 5)
    getattr(found, side)[1] = -INF
    assert found.loss(name).value.isnan()


@pytest.mark.parametrize(("name", "most"), [("jsd", math.log(2)), ("tvd", 1.0), ("uld", 0.0)])
def test_sides_that_share_no_class_are_as_far_apart_as_can_be(name: str, most: float) -> None:
    found = Case(torch.tensor([[0.0, -INF]]), torch.tensor([[-INF, 0.0]]), torch.zeros(1))
    assert found.loss(name).value.item() == pytest.approx(most)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_side_that_allows_the_label_alone_gives_no_nan(name: str, side: str) -> None:
    found = case(3, 5, dtype=torch.float32)
    others = torch.ones(3, 5, dtype=torch.bool).scatter(-1, found.labels.unsqueeze(-1), False)
    setattr(found, side, getattr(found, side).masked_fill(others, -INF))
    assert not found.loss(name).value.isnan()
    assert side == "student" or finite(found.loss(name).value)
    assert finite(found.gradient(name))


@pytest.mark.parametrize("name", LABELLED)
def test_a_label_that_the_teacher_rules_out_gives_no_nan(name: str) -> None:
    found = case(3, 5, dtype=torch.float32)
    found.teacher = found.teacher.scatter(-1, found.labels.unsqueeze(-1), -INF)
    assert finite(found.loss(name).value, found.gradient(name))


@every
def test_equal_logits_everywhere_give_a_finite_gradient(name: str) -> None:
    for student in (torch.zeros(4, 5), torch.full((4, 5), 7.0)):
        found = Case(student, torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.arange(4))
        assert finite(found.loss(name).value, found.gradient(name))


# the others have a factor that is constant by definition, so their gradient is not that of the value
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"adaptive_kl", "wsld", "sampled"}))
def test_a_second_derivative_is_right_or_refused(name: str) -> None:
    found = case(2, 3, scale=1.0)

    def value(student: torch.Tensor) -> torch.Tensor:
        return Case(student, found.teacher, found.labels, 2.0).loss(name).value

    assert torch.autograd.gradgradcheck(value, found.student.requires_grad_())


def test_an_infinite_divergence_that_counts_nothing_adds_nothing() -> None:
    student = torch.tensor([[0.0, -200.0, -INF]])
    found = Case(student, torch.tensor([[0.0, -300.0, -120.0]]), torch.zeros(1))
    assert not found.loss("adaptive_kl", mass=0).value.isnan()
    assert finite(found.gradient("adaptive_kl", mass=0))
