"""Half-precision logits, single-precision arithmetic; double stays double."""

from __future__ import annotations

import pytest
import torch
from logits_strategies import LOSSES, Case, case, finite

every = pytest.mark.parametrize("name", LOSSES)
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def in_type(found: Case, dtype: torch.dtype) -> Case:
    return Case(found.student.detach().to(dtype), found.teacher.to(dtype), found.labels, 2.0)


@every
@halves
def test_autocast_changes_neither_value_nor_gradient(name: str, dtype: torch.dtype) -> None:
    found = in_type(case(6, 9), torch.float32)
    value, gradient = found.loss(name).value, found.gradient(name)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(found.loss(name).value, value)
        assert torch.equal(found.gradient(name), gradient)


@every
@halves
def test_half_precision_logits_are_computed_in_single_precision(name: str, dtype: torch.dtype) -> None:
    half = in_type(case(6, 9, scale=50.0), dtype)
    exact = in_type(half, torch.float32)
    assert half.loss(name).total.dtype == torch.float32
    assert torch.equal(half.loss(name).value, exact.loss(name).value)
    assert torch.allclose(half.gradient(name), exact.gradient(name).to(dtype))


@every
@halves
def test_a_half_precision_student_of_a_single_precision_teacher_gets_a_half_precision_gradient(
    name: str, dtype: torch.dtype
) -> None:
    mixed = in_type(case(6, 9), torch.float32)
    mixed.student = mixed.student.to(dtype)
    gradient = mixed.gradient(name)
    assert gradient.dtype == dtype
    assert finite(gradient)


@every
def test_float64_stays_float64_on_either_side(name: str) -> None:
    found = case(6, 9)
    assert found.loss(name).total.dtype == torch.float64
    found.student = found.student.float()
    assert found.loss(name).total.dtype == torch.float64


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"sampled"}))  # whose draws depend on the precision
def test_single_precision_is_near_double_precision_over_many_classes(name: str) -> None:
    found = case(8, 200 if name == "ranking" else 5000, scale=2.0)
    single = in_type(found, torch.float32)
    exact = in_type(found, torch.float64)
    assert single.loss(name).value.item() == pytest.approx(exact.loss(name).value.item(), rel=2e-5)
