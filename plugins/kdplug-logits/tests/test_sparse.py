"""A teacher that is known at a few classes of each item."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logits_strategies import LOSSES, Case, case, cases, finite

import kdplug
from kdplug import OutputsError, SettingError, ShapeError, SparseLogits
from kdplug_logits.sampled import draw
from kdplug_logits.topk import topk_rows

examples = settings(max_examples=15, deadline=None)
RESTS = ("tail", "zero", "renorm_teacher")


def from_cache(name: str, student: torch.Tensor, teacher: SparseLogits, **given: Any) -> Any:
    return LOSSES[name](student, None, teacher.temperature, teacher, **given)


@pytest.mark.parametrize("rest", RESTS)
@given(drawn=cases(), kept=st.integers(1, 9), k=st.integers(1, 9), temperature=st.sampled_from([1.0, 2.5]))
@examples
def test_topk_from_a_cache_is_topk_of_the_dense_teacher(
    rest: str, drawn: Case, kept: int, k: int, temperature: float
) -> None:
    teacher = SparseLogits.top(drawn.teacher, kept, temperature)
    drawn.temperature = temperature
    expected = drawn.loss("topk", k=min(kept, k), rest=rest)
    found = from_cache("topk", drawn.student, teacher, k=k, rest=rest)
    assert found.count == expected.count
    assert torch.allclose(found.total, expected.total, rtol=1e-9, atol=1e-9)
    student = drawn.student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(from_cache("topk", student, teacher, k=k, rest=rest).value, student)
    assert torch.allclose(gradient, drawn.gradient("topk", k=min(kept, k), rest=rest), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("t2", [True, False])
def test_the_closed_form_of_topk_from_a_cache_is_the_loss(rest: Any, t2: bool) -> None:
    found = case(6, 9)
    teacher = SparseLogits.top(found.teacher, 4, 2.0)
    student = found.student.clone().requires_grad_()
    total = from_cache("topk", student, teacher, k=3, rest=rest, t2=t2).total
    rows = found.student.clone()
    values = topk_rows(rows, teacher, 2.0, k=3, rest=rest, t2=t2)
    assert torch.allclose(values.sum(), total)
    assert torch.allclose(rows, torch.autograd.grad(total, student)[0])


def test_a_cache_in_half_precision_is_computed_in_single_precision() -> None:
    found = case(6, 9, dtype=torch.float32)
    teacher = SparseLogits.top(found.teacher, 4)
    half = replace(teacher, log_probs=teacher.log_probs.bfloat16(), tail=teacher.tail.bfloat16())
    value = from_cache("topk", found.student.bfloat16(), half).value
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(from_cache("topk", found.student, teacher).value.item(), rel=2e-2)


def test_a_sample_in_a_cache_is_weighted_as_it_says() -> None:
    found = case(6, 9)
    ids, weights = draw((found.teacher / 2).log_softmax(-1), 40, 1.0, seed=0)
    teacher = SparseLogits(ids, None, 9, weights=weights, temperature=2.0)
    log_probs = (found.student / 2).log_softmax(-1)
    expected = -4 * sum(float(weights[i, j] * log_probs[i, ids[i, j]]) for i in range(6) for j in range(40)) / 6
    assert from_cache("sampled", found.student, teacher).value.item() == pytest.approx(expected)


def test_places_of_a_sample_that_are_not_used_add_nothing() -> None:
    student = torch.tensor([[0.0, 1.0, -float("inf")]], requires_grad=True)
    teacher = SparseLogits(torch.tensor([[1, 2]]), None, 3, weights=torch.tensor([[1.0, 0.0]]))
    value = from_cache("sampled", student, teacher).value
    assert finite(value, torch.autograd.grad(value, student)[0])


@pytest.mark.parametrize("name", ["topk", "sampled"])
def test_a_student_or_a_temperature_that_does_not_fit_the_cache_is_an_error(name: str) -> None:
    found = case(3, 9)
    teacher = SparseLogits.top(found.teacher, 4)
    if name == "sampled":
        teacher = replace(teacher, tail=None, weights=teacher.log_probs.exp())
    with pytest.raises(
        ShapeError, match=rf"{name}: student_logits \[3, 8\] do not match .* represent logits of shape \[3, 9\]"
    ):
        LOSSES[name](found.student[:, 1:], None, 1.0, teacher)
    with pytest.raises(
        SettingError,
        match=rf"{name}: needs the temperature of the teacher's SparseLogits, 1, got 2: .* Set temperature: 1, or",
    ):
        LOSSES[name](found.student, None, 2.0, teacher)
    with pytest.raises(SettingError, match=rf"{name}: needs the temperature of the .*, got one value per item"):
        LOSSES[name](found.student, None, torch.ones(3), teacher)


def test_a_cache_that_does_not_hold_what_is_needed_is_an_error_that_names_the_way_out() -> None:
    found = case(3, 9)
    teacher = SparseLogits.top(found.teacher, 4)
    sample = replace(teacher, tail=None, weights=teacher.log_probs.exp())
    with pytest.raises(OutputsError, match=r"topk: the teacher's SparseLogits are a sample.* Use the loss 'sampled'"):
        from_cache("topk", found.student, sample)
    with pytest.raises(
        OutputsError, match=r"sampled: the teacher's SparseLogits have no weights.* Use the loss 'topk'"
    ):
        from_cache("sampled", found.student, teacher)
    with pytest.raises(OutputsError, match=r"topk: the teacher's SparseLogits have no tail\. Set rest to zero"):
        from_cache("topk", found.student, replace(teacher, tail=None))
    with pytest.raises(OutputsError, match=r"topk: the teacher's SparseLogits hold a class twice for one item"):
        from_cache("topk", found.student, replace(teacher, ids=torch.zeros_like(teacher.ids)))


@pytest.mark.parametrize(("loss", "settings"), [("topk", {"k": 3}), ("kl", {})])
def test_the_objective_takes_a_cache_for_a_loss_that_asks_for_it_and_for_one_that_does_not(
    loss: str, settings: dict[str, Any]
) -> None:
    found = case(4, 9)
    config = kdplug.DistillationConfig(temperature=2, kd_loss_type={"name": loss, **settings})
    teacher = SparseLogits.top(found.teacher, 3, 2.0)
    report = kdplug.Objective(config)(student={"logits": found.student}, teacher={"logits": teacher})
    found.temperature = 2.0
    assert torch.allclose(report.terms["kd_loss"].value, found.loss("topk", k=3).value)
