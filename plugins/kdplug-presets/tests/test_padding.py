"""TextBrewer masks by multiplication, so nan in padding spreads; here a mask is a selection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from presets_strategies import (
    BOTH_ROUTES,
    MATCH,
    features,
    finite,
    oracle_of,
    padded_entries,
    spoil,
)

from kdplug_presets import attention

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("name", [name for name in MATCH if name != "pkd"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("sides", [("student",), ("teacher",), ("student", "teacher")])
def test_padding_that_is_not_finite_changes_neither_value_nor_gradient(name: str, bad: float, sides: Any) -> None:
    for width in BOTH_ROUTES.get(name, [5]):
        case = features(name, width=width, batch=2)
        neutral = -float("inf") if name.startswith("attention_ce") else 0.0
        spoil(case, neutral, sides)
        expected, gradients = case.loss().value, case.gradients()
        spoil(case, bad, sides)
        assert torch.allclose(case.loss().value, expected)
        for found, wanted in zip(case.gradients(), gradients, strict=True):
            assert torch.allclose(found, wanted)
            if "student" in sides or not name.startswith("attention_ce"):
                assert (found[padded_entries(name, case.mask).expand_as(found)] == 0).all()


def test_padding_that_holds_nan_beside_position_0_changes_nothing_in_pkd() -> None:
    case = features("pkd")
    expected = case.loss().value
    case.student[0].data[:, 1:] = float("nan")
    assert torch.equal(case.loss().value, expected)
    assert finite(*case.gradients())


@pytest.mark.parametrize("name", ["attention_ce", "attention_ce_mean"])
def test_finite_padded_keys_stay_in_the_softmax_as_in_textbrewer(name: str) -> None:
    case = features(name)
    before = case.loss().value
    case.student = [t.detach().masked_fill(padded_entries(name, case.mask), 5.0).requires_grad_() for t in case.student]
    assert not torch.allclose(case.loss().value, before)


@pytest.mark.parametrize("name", ["attention_ce", "attention_ce_mean"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_nan_in_a_valid_attention_score_is_not_hidden(name: str, side: str) -> None:
    case = features(name)
    tensor = getattr(case, side)[0].detach().clone()
    tensor[0, :, 0, 0] = float("nan")
    setattr(case, side, [tensor])
    assert case.loss().value.isnan()


@pytest.mark.parametrize("name", ["attention_ce", "attention_ce_mean"])
def test_minus_infinity_at_padded_keys_the_usual_way_to_mask_is_finite(name: str) -> None:
    case = features(name)
    where = ~case.mask[:, None, None, :]
    case.student = [tensor.detach().masked_fill(where, -float("inf")).requires_grad_() for tensor in case.student]
    case.teacher = [tensor.masked_fill(where, -float("inf")) for tensor in case.teacher]
    assert finite(case.loss().value, *case.gradients())


@pytest.mark.parametrize("value", [0.5, -0.5])
def test_negative_scores_are_data_where_the_padding_rule_is_off(value: float) -> None:
    student, teacher = torch.full((1, 1, 2, 2), value), torch.full((1, 1, 2, 2), value * 2)
    assert attention.attention_mse(student, teacher, pad_below=None).value.item() == pytest.approx(0.25)
    assert attention.attention_mse_sum(student, teacher, pad_below=None).value.item() == pytest.approx(0.25)


def test_log_probabilities_are_data_for_attention_ce_where_the_padding_rule_is_off() -> None:
    scores = torch.randn(1, 2, 4, 4).log_softmax(-1)
    assert attention.attention_ce(scores, scores).value.item() == 0.0
    entropy = torch.distributions.Categorical(logits=scores).entropy().mean()
    assert torch.allclose(attention.attention_ce(scores, scores, pad_below=None).value, entropy)


def test_attention_probabilities_are_not_put_through_a_softmax_again() -> None:
    case = features("attention_ce", length=6)
    student, teacher = case.student[0].softmax(-1), case.teacher[0].softmax(-1)
    found = attention.attention_ce(student, teacher, case.mask, inputs="probs").value
    assert torch.allclose(found.double(), oracle_of("attention_ce_probs")(student, teacher, case.mask))
    mean = attention.attention_ce_mean(student, teacher, case.mask, inputs="probs").value
    assert torch.allclose(mean.double(), oracle_of("attention_ce_probs")(student.mean(1), teacher.mean(1), case.mask))


def test_probabilities_of_zero_and_padding_of_nan_are_finite_in_attention_ce() -> None:
    mask = torch.tensor([[1, 1, 0]])
    student = torch.tensor([[[1.0, 0.0, 0.0]] * 3]).masked_fill(
        padded_entries("attention_ce", mask.bool())[:, 0], float("nan")
    )
    loss = attention.attention_ce(student.requires_grad_(), torch.tensor([[[0.5, 0.5, 0.0]] * 3]), mask, inputs="probs")
    (gradient,) = torch.autograd.grad(loss.value, student)
    assert finite(loss.value, gradient)
    assert (gradient[0, 2] == 0).all()
