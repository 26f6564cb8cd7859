"""The defects that TextBrewer's losses have, each absent here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from presets_strategies import ATTENTION, HIDDEN, KD, MATCH, PAIR, features, oracle_of

from kdplug import SettingError, ShapeError
from kdplug_presets import attention, gram, hidden, kd

every_match = pytest.mark.parametrize("name", MATCH)
every_kd = pytest.mark.parametrize("name", KD)
HALVES = [torch.float16, torch.bfloat16]
BAD = [float("nan"), float("inf"), -float("inf")]
WIDTHS = {"fsp": [5, 40], "nst": [5, 1]}


def finite(*tensors: torch.Tensor) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def padding(name: str, mask: torch.Tensor) -> torch.Tensor:
    """The entries that belong to padded tokens, of the shape of a feature without its last axis (or heads)."""
    return ~(mask.unsqueeze(-1) & mask.unsqueeze(-2)).unsqueeze(1) if name in ATTENTION else ~mask.unsqueeze(-1)


def spoil(case: Any, bad: float, sides: tuple[str, ...]) -> None:
    """Put ``bad`` into every padded entry."""
    where = padding(case.name, case.mask)
    for side in sides:
        setattr(case, side, [t.detach().masked_fill(where, bad) for t in getattr(case, side)])
    case.student = [tensor.detach().requires_grad_() for tensor in case.student]


# counts in half precision


@pytest.mark.parametrize("dtype", HALVES)
def test_counts_above_what_half_precision_holds_do_not_make_the_loss_zero(dtype: torch.dtype) -> None:
    student = torch.randn(8, 128, 768).to(dtype)
    loss = hidden.hidden_mse(student, student + 1, torch.ones(8, 128))
    assert loss.value.dtype == torch.float32
    assert loss.value.item() == pytest.approx(1.0, rel=1e-2)


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
    for width in WIDTHS.get(name, [5]):
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


# nothing counted


@every_match
def test_an_empty_mask_gives_zero_and_zero_gradients_and_no_nan(name: str) -> None:
    for width in WIDTHS.get(name, [5]):
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
    for width in WIDTHS.get(name, [5]):
        case = features(name, width=width)
        case.mask[1] = False
        spoil(case, float("nan"), ("student", "teacher"))
        loss, gradients = case.loss(), case.gradients()
        rest = features(name)
        rest.student = [tensor[[0, 2]] for tensor in case.student]
        rest.teacher, rest.mask = [tensor[[0, 2]] for tensor in case.teacher], case.mask[[0, 2]]
        assert torch.allclose(loss.value, rest.loss().value)
        assert all(finite(g) and (g[1] == 0).all() for g in gradients)


# padding


@pytest.mark.parametrize("name", [name for name in MATCH if name != "pkd"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("sides", [("student",), ("teacher",), ("student", "teacher")])
def test_padding_that_is_not_finite_changes_neither_value_nor_gradient(name: str, bad: float, sides: Any) -> None:
    for width in WIDTHS.get(name, [5]):
        case = features(name, width=width, batch=2)
        neutral = -float("inf") if name.startswith("attention_ce") else 0.0
        spoil(case, neutral, sides)
        expected, gradients = case.loss().value, case.gradients()
        spoil(case, bad, sides)
        assert torch.allclose(case.loss().value, expected)
        for found, wanted in zip(case.gradients(), gradients, strict=True):
            assert torch.allclose(found, wanted)
            if "student" in sides or not name.startswith("attention_ce"):
                assert (found[padding(name, case.mask).expand_as(found)] == 0).all()


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
    case.student = [t.detach().masked_fill(padding(name, case.mask), 5.0).requires_grad_() for t in case.student]
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


# attentions that are probabilities


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
        padding("attention_ce", mask.bool())[:, 0], float("nan")
    )
    loss = attention.attention_ce(student.requires_grad_(), torch.tensor([[[0.5, 0.5, 0.0]] * 3]), mask, inputs="probs")
    (gradient,) = torch.autograd.grad(loss.value, student)
    assert finite(loss.value, gradient)
    assert (gradient[0, 2] == 0).all()


# classes that are ruled out, and vectors without a direction


def test_a_class_that_the_teacher_rules_out_adds_nothing() -> None:
    teacher = torch.tensor([[0.3, -0.2, -float("inf")]])
    student = torch.tensor([[0.1, 0.4, -float("inf")]], requires_grad=True)
    value = kd.ce(student, teacher, 2.0).value
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.allclose(value, kd.ce(student[:, :2], teacher[:, :2], 2.0).value)
    assert finite(gradient)
    assert gradient[0, 2] == 0


def test_a_class_that_only_the_teacher_rules_out_has_a_finite_gradient() -> None:
    student = torch.tensor([[0.1, 0.4, 7.0]], requires_grad=True)
    value = kd.ce(student, torch.tensor([[0.3, -0.2, -float("inf")]])).value
    assert finite(value, *torch.autograd.grad(value, student))


@every_kd
def test_logits_of_ten_thousand_stay_finite(name: str) -> None:
    student = (torch.randn(4, 7) * 1e4).requires_grad_()
    value = KD[name](student, torch.randn(4, 7) * 1e4).value
    assert finite(value, *torch.autograd.grad(value, student))


@pytest.mark.parametrize("name", ["pkd", "cos"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_zero_vector_gives_no_nan(name: str, side: str) -> None:
    case = features(name)
    getattr(case, side)[0].data[:, 0] = 0.0
    assert finite(case.loss().value, *case.gradients())


# temperatures


def per_item(shape: tuple[int, ...]) -> torch.Tensor:
    """Temperatures that differ along every axis."""
    return 1.0 + torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


@every_kd
@pytest.mark.parametrize(
    "shape", [(), (1,), (1, 1), (1, 1, 1), (3, 4), (3, 4, 1), (3, 1), (1, 4), (3, 1, 1), (1, 4, 1)]
)
def test_a_temperature_tensor_of_every_legal_shape_runs_along_the_axes_it_names(name: str, shape: Any) -> None:
    student, teacher, temperature = torch.randn(3, 4, 5), torch.randn(3, 4, 5), per_item(shape)
    full = (
        temperature.view(()) if temperature.numel() == 1 else temperature.view(shape if len(shape) == 2 else shape[:2])
    )
    expected = oracle_of(name)(student, teacher, full.expand(3, 4))
    assert KD[name](student, teacher, temperature).value.item() == pytest.approx(expected.item(), rel=1e-5)


@every_kd
@pytest.mark.parametrize("shape", [(3,), (4,), (5,), (3, 3), (4, 3), (3, 4, 5), (1, 1, 5), (1, 3, 4, 1), (0,)])
def test_an_ambiguous_or_wrong_temperature_tensor_is_an_error_and_not_a_broadcast(name: str, shape: Any) -> None:
    with pytest.raises(ShapeError, match=r"temperature \[.*does not fit logits \[3, 4, 5\]"):
        KD[name](torch.randn(3, 4, 5), torch.randn(3, 4, 5), per_item(shape))


@every_kd
@pytest.mark.parametrize("size", [3, 4])
def test_a_batch_of_temperatures_beside_a_square_batch_of_sequences_is_an_error(name: str, size: int) -> None:
    with pytest.raises(ShapeError, match="one for each item"):
        KD[name](torch.randn(size, size, 5), torch.randn(size, size, 5), per_item((size,)))


@every_kd
@pytest.mark.parametrize("temperature", [0, 0.0, -3.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_an_error(name: str, temperature: float) -> None:
    with pytest.raises(SettingError, match="temperature must be a positive number"):
        KD[name](torch.randn(2, 5), torch.randn(2, 5), temperature)


# broadcasting accidents


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("masked", [True, False])
def test_one_head_against_two_is_an_error_and_not_a_broadcast(name: str, masked: bool) -> None:
    case = features(name, masked=masked)
    case.student = [case.student[0][:, :1]]
    with pytest.raises(ShapeError, match=r"\[3, 1, 4, 4\].*\[3, 2, 4, 4\].*'heads': 1 against 2"):
        case.loss()


@pytest.mark.parametrize("name", [*HIDDEN, "fsp"])
def test_width_one_against_many_is_an_error_and_not_a_broadcast(name: str) -> None:
    case = features(name)
    case.student = [tensor[..., :1] for tensor in case.student]
    with pytest.raises(ShapeError, match=r"\[3.* 1\].*\[3.* 5\].*'width': 1 against 5"):
        case.loss()


@every_match
@pytest.mark.parametrize("masked", [True, False])
def test_another_batch_on_the_teachers_side_is_an_error(name: str, masked: bool) -> None:
    case = features(name, masked=masked)
    case.teacher = [tensor[:1] for tensor in case.teacher]
    with pytest.raises(ShapeError, match="'batch': 3 against 1"):
        case.loss()


@pytest.mark.parametrize("name", [name for name in MATCH if name != "pkd"])
def test_another_length_on_the_teachers_side_is_an_error(name: str) -> None:
    case = features(name)
    case.teacher = [tensor[..., :1] if name in ATTENTION else tensor[:, :1] for tensor in case.teacher]
    axis = "keys" if name in ATTENTION else "length"
    with pytest.raises(ShapeError, match=f"'{axis}': 4 against 1"):
        case.loss()


@every_match
@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (4, 3), (3, 4, 1), (3,)])
def test_a_mask_of_another_shape_is_an_error_and_not_a_broadcast(name: str, shape: tuple[int, ...]) -> None:
    case = features(name)
    case.mask = torch.ones(shape)
    with pytest.raises(ShapeError, match=r"mask \[.*must be \[3, 4\]"):
        case.loss()


@pytest.mark.parametrize("name", ["attention_mse", "hidden_mse", "cos"])
def test_another_rank_on_the_teachers_side_is_an_error(name: str) -> None:
    case = features(name)
    case.teacher = [tensor[:, 0] for tensor in case.teacher]
    with pytest.raises(ShapeError, match="differ in rank"):
        case.loss()


@every_kd
def test_logits_of_other_classes_are_an_error(name: str) -> None:
    with pytest.raises(ShapeError, match="'classes': 1 against 5"):
        KD[name](torch.randn(3, 1), torch.randn(3, 5))


# pairs of layers


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_anything_but_two_layers_is_an_error(name: str, count: int) -> None:
    layers = [torch.randn(2, 3, 4)] * count
    with pytest.raises(ShapeError, match=f"must be a list of 2 tensors, got {count}"):
        MATCH[name](layers, [torch.randn(2, 3, 4)] * 2)


@pytest.mark.parametrize("name", PAIR)
def test_a_single_tensor_for_two_layers_is_an_error_and_not_two_examples(name: str) -> None:
    with pytest.raises(ShapeError, match="must be a list of 2 tensors, got Tensor"):
        MATCH[name](torch.randn(2, 3, 4), torch.randn(2, 3, 4))


@pytest.mark.parametrize("name", [*ATTENTION, *HIDDEN])
def test_a_list_of_layers_for_a_loss_on_one_is_an_error(name: str) -> None:
    case = features(name)
    with pytest.raises(ShapeError, match="must be one tensor, got 2"):
        MATCH[name]([case.student[0]] * 2, [case.teacher[0]] * 2)


def test_nst_needs_one_width_on_each_side_and_takes_another_on_the_other() -> None:
    narrow, wide = torch.randn(2, 3, 4), torch.randn(2, 3, 6)
    assert finite(gram.nst([narrow, narrow], (wide, wide)).value)
    with pytest.raises(ShapeError, match=r"student_features\[0\].*'width': 4 against 6"):
        gram.nst([narrow, wide], [wide, wide])
