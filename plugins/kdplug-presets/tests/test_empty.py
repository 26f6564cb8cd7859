"""TextBrewer gives nan where nothing counts; here that is 0, with gradients of 0."""

from __future__ import annotations

import pytest
import torch
from presets_strategies import (
    BOTH_ROUTES,
    KD,
    MATCH,
    features,
    finite,
    spoil,
)

from kdplug_presets import hidden

every_match = pytest.mark.parametrize("name", MATCH)
every_kd = pytest.mark.parametrize("name", KD)


@every_match
def test_an_empty_mask_gives_zero_and_zero_gradients_and_no_nan(name: str) -> None:
    for width in BOTH_ROUTES.get(name, [5]):
        case = features(name, width=width)
        case.mask = torch.zeros_like(case.mask)
        loss = case.loss()
        assert loss.total.item() == loss.value.item() == 0.0
        assert loss.count == 0
        assert all((gradient == 0).all() for gradient in case.gradients())


@every_match
def test_an_empty_mask_over_nan_gives_zero_and_zero_gradients(name: str) -> None:
    case = features(name)
    case.mask = torch.zeros_like(case.mask)
    spoil(case, float("nan"), ("student", "teacher"))
    assert case.loss().value.item() == 0.0
    assert all((gradient == 0).all() for gradient in case.gradients())


@every_kd
def test_logits_without_rows_give_zero_and_no_nan(name: str) -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    loss = KD[name](student, torch.zeros(0, 5), 2.0)
    loss.value.backward()
    assert loss.value.item() == 0.0
    assert loss.count == 0
    assert student.grad is not None


@every_match
@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_of_nothing_gives_zero(name: str, masked: bool) -> None:
    case = features(name, batch=0, masked=masked)
    assert case.loss().value.item() == 0.0
    assert case.gradients()[0].shape[0] == 0


@every_match
def test_one_empty_row_is_left_out_of_the_mean(name: str) -> None:
    for width in BOTH_ROUTES.get(name, [5]):
        case = features(name, width=width)
        case.mask[1] = False
        spoil(case, float("nan"), ("student", "teacher"))
        loss, gradients = case.loss(), case.gradients()
        rest = features(name)
        rest.student = [tensor[[0, 2]] for tensor in case.student]
        rest.teacher, rest.mask = [tensor[[0, 2]] for tensor in case.teacher], case.mask[[0, 2]]
        assert torch.allclose(loss.value, rest.loss().value)
        assert all(finite(g) and (g[1] == 0).all() for g in gradients)


def test_a_mask_over_examples_is_enough_for_pkd_on_features_without_a_length() -> None:
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    found = hidden.pkd(student, teacher, torch.tensor([1, 0, 1])).value
    assert torch.allclose(found, hidden.pkd(student[[0, 2]], teacher[[0, 2]]).value)
