"""TextBrewer counts in the type of its features; no loss here loses its count or its values in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from presets_strategies import (
    BOTH_ROUTES,
    KD,
    MATCH,
    features,
    finite,
    oracle_of,
)

from kdplug_presets import attention, hidden

every_match = pytest.mark.parametrize("name", MATCH)
every_kd = pytest.mark.parametrize("name", KD)
HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
def test_counts_above_what_half_precision_holds_do_not_make_the_loss_zero(dtype: torch.dtype) -> None:
    student = torch.randn(8, 128, 768).to(dtype)
    loss = hidden.hidden_mse(student, student + 1, torch.ones(8, 128))
    assert loss.value.dtype == torch.float32
    assert loss.value.item() == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("loss", [hidden.hidden_mse, hidden.cos])
@pytest.mark.parametrize("dtype", HALVES)
def test_more_tokens_than_half_precision_holds_are_all_counted(loss: Any, dtype: torch.dtype) -> None:
    student = torch.ones(600, 128, 1, dtype=dtype)
    found = loss(student, -student, torch.ones(600, 128, dtype=dtype))
    assert int(found.count) == 600 * 128
    assert found.value.item() == pytest.approx(4.0 if loss is hidden.hidden_mse else 2.0)


@pytest.mark.parametrize("dtype", HALVES)
def test_counts_under_autocast_do_not_make_the_loss_zero(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        student = torch.randn(8, 128, 768) @ torch.eye(768)
        value = hidden.hidden_mse(student, student + 1, torch.ones(8, 128)).value
    assert student.dtype == dtype
    assert value.item() == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize("dtype", HALVES)
def test_attention_counts_above_what_half_precision_holds_do_not_make_the_loss_zero(dtype: torch.dtype) -> None:
    student = torch.zeros(2, 4, 200, 200, dtype=dtype)
    assert attention.attention_mse(student, student + 1, torch.ones(2, 200)).value.item() == pytest.approx(1.0)


@every_match
@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_changes_neither_value_nor_gradient(name: str, dtype: torch.dtype) -> None:
    for width in BOTH_ROUTES.get(name, [5]):
        case = features(name, width=width)
        expected, gradients = case.loss().value, case.gradients()
        with torch.autocast("cpu", dtype=dtype):
            value = case.loss().value
            found = case.gradients(value)
        assert torch.equal(value, expected)
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))


@every_kd
@pytest.mark.parametrize("dtype", HALVES)
def test_kd_in_half_precision_is_computed_in_single_precision(name: str, dtype: torch.dtype) -> None:
    student, teacher = (torch.randn(4, 7) * 100).to(dtype), (torch.randn(4, 7) * 100).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        value = KD[name](student, teacher, 2.0).value
    assert value.item() == pytest.approx(oracle_of(name)(student, teacher, 2.0).item(), rel=1e-5)


@every_match
def test_float64_stays_float64(name: str) -> None:
    assert features(name, dtype=torch.float64).loss().total.dtype == torch.float64


@every_match
@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_student_gets_a_half_precision_gradient(name: str, dtype: torch.dtype) -> None:
    case = features(name, dtype=dtype)
    case.teacher = [tensor.float() for tensor in case.teacher]
    assert all(gradient.dtype == dtype and finite(gradient) for gradient in case.gradients())
