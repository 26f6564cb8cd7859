"""What holds for every loss, whatever its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from presets_strategies import ATTENTION, BOTH_ROUTES, KD, MATCH, ZERO_AT_EQUALITY, drawn_features, features

from kdplug import OutputsError
from kdplug_presets import kd

every_match = pytest.mark.parametrize("name", MATCH)
every_kd = pytest.mark.parametrize("name", KD)
examples = settings(max_examples=15, deadline=None)


@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
@given(data=st.data())
@examples
def test_losses_are_zero_where_the_student_is_the_teacher(name: str, data: st.DataObject) -> None:
    case = data.draw(drawn_features(name, dtype=torch.float32))
    assume(case.has_directions())
    case.teacher = [tensor.detach().clone() for tensor in case.student]
    assert case.loss().value.item() == pytest.approx(0.0, abs=1e-6)
    assert all(gradient.abs().max() < 1e-5 for gradient in case.gradients())


@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
@given(data=st.data())
@examples
def test_distances_are_never_negative(name: str, data: st.DataObject) -> None:
    case = data.draw(drawn_features(name, dtype=torch.float32))
    case.teacher = [tensor.detach() * (1 + 1e-6) for tensor in case.student]
    assert case.loss().value.item() >= 0.0


@every_match
def test_match_gradients_are_right_in_float64(name: str) -> None:
    for masked in (True, False):
        for width in BOTH_ROUTES.get(name, [5]):
            case = features(name, batch=2, length=3, width=width, masked=masked, dtype=torch.float64)

            def value(*student: torch.Tensor, case: Any = case) -> torch.Tensor:
                case.student = list(student)
                return case.loss().value

            assert torch.autograd.gradcheck(value, case.student)


@every_kd
def test_kd_gradients_are_right_in_float64(name: str) -> None:
    student, teacher = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(2))
    temperature = torch.rand(2, 3, dtype=torch.float64) + 1
    assert torch.autograd.gradcheck(lambda s: KD[name](s, teacher, temperature).value, student.requires_grad_())


@every_match
def test_a_scaled_loss_has_scaled_gradients_also_the_second_time(name: str) -> None:
    for width in BOTH_ROUTES.get(name, [5]):
        case = features(name, width=width)
        value = case.loss().value
        first = torch.autograd.grad(value * 1024.0, case.student, retain_graph=True)
        second = torch.autograd.grad(value, case.student)
        assert all(torch.allclose(a, b * 1024.0, rtol=1e-5) for a, b in zip(first, second, strict=True))


@every_match
def test_a_second_derivative_is_refused_and_not_wrong(name: str) -> None:
    case = features(name)
    first = torch.autograd.grad(case.loss().value, case.student, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        torch.autograd.grad(sum(g.sum() for g in first), case.student)


@every_match
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    case = features(name)
    for tensor in case.teacher:
        tensor.requires_grad_()
    case.loss().value.backward()
    assert all(tensor.grad is None for tensor in case.teacher)
    case.student = [tensor.detach() for tensor in case.student]
    assert not case.loss().total.requires_grad


@every_kd
def test_the_kd_gradient_reaches_the_temperature_but_not_the_teacher(name: str) -> None:
    student, teacher, temperature = torch.randn(3, 4), torch.randn(3, 4).requires_grad_(), torch.ones(3)
    KD[name](student.requires_grad_(), teacher, temperature.requires_grad_()).value.backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert temperature.grad is not None


@every_match
def test_inputs_are_left_as_they_were(name: str) -> None:
    for width in BOTH_ROUTES.get(name, [5]):
        case = features(name, width=width)
        tensors = [*case.student, *case.teacher, case.mask]
        before = [tensor.detach().clone() for tensor in tensors]
        case.gradients()
        assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


@every_match
@given(data=st.data())
@examples
def test_a_batch_may_be_split_where_sums_and_counts_are_added(name: str, data: st.DataObject) -> None:
    case = data.draw(drawn_features(name, batch=4, dtype=torch.float64))
    whole, parts = case.loss(), []
    for rows in (slice(0, 1), slice(1, 4)):
        piece = features(name)
        piece.student = [tensor[rows] for tensor in case.student]
        piece.teacher = [tensor[rows] for tensor in case.teacher]
        piece.mask = None if case.mask is None else case.mask[rows]
        parts.append(piece.loss())
    assert torch.allclose(parts[0].total + parts[1].total, whole.total)
    assert int(parts[0].count + parts[1].count) == int(whole.count)


@every_match
def test_a_mask_of_ones_is_no_mask_where_nothing_is_read_as_padding(name: str) -> None:
    case = features(name)
    if name in ATTENTION:
        case.student, case.teacher = [t.detach().abs() for t in case.student], [t.abs() for t in case.teacher]
    case.mask = torch.ones_like(case.mask)
    masked = case.loss()
    case.mask = None
    assert torch.allclose(masked.value, case.loss().value)
    assert int(masked.count) == case.loss().count


@every_match
def test_a_mask_of_any_type_selects_the_same_and_other_numbers_are_refused(name: str) -> None:
    case = features(name)
    expected, mask = case.loss().value, case.mask
    for dtype in (torch.uint8, torch.int64, torch.float16, torch.float64):
        case.mask = mask.to(dtype)
        assert torch.equal(case.loss().value, expected)
    for wrong in (mask * 7, (1.0 - mask.float()) * -1e9, mask.float().masked_fill(~mask, torch.nan)):
        case.mask = wrong
        with pytest.raises(OutputsError, match=r": a mask must contain only 0 and 1, or be bool, got"):
            case.loss()


@every_match
def test_inputs_may_be_strided(name: str) -> None:
    case = features(name)
    expected = case.gradients()
    spread = [tensor.detach().transpose(1, 2).contiguous().transpose(1, 2) for tensor in case.student]
    case.student = [tensor.requires_grad_() for tensor in spread]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(case.gradients(), expected, strict=True))


@every_match
def test_large_inputs_are_worked_on_in_blocks_with_the_same_result(name: str, monkeypatch: Any) -> None:
    case = features(name, batch=5, width=30)
    expected, gradients = case.loss().value, case.gradients()
    monkeypatch.setattr("kdplug_presets.numerics._SPARING", 2)
    monkeypatch.setattr("kdplug_presets.numerics._CACHED", 2)
    assert torch.allclose(case.loss().value, expected)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(case.gradients(), gradients, strict=True))


@every_kd
@pytest.mark.parametrize("shape", [(9,), (5, 9), (2, 3, 9)])
def test_logits_are_worked_on_in_blocks_with_the_same_result(name: str, shape: Any, monkeypatch: Any) -> None:
    student, teacher = torch.randn(shape), torch.randn(shape)
    expected = KD[name](student, teacher).value
    monkeypatch.setattr("kdplug_presets.numerics._SPARING", 2)
    monkeypatch.setattr("kdplug_presets.numerics._CACHED", 2)
    assert torch.allclose(KD[name](student, teacher).value, expected)


@every_match
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_match_losses_compile_into_one_graph(name: str, masked: bool) -> None:
    torch.compiler.reset()
    case = features(name, masked=masked, width=20)
    expected, gradients = case.loss().value, case.gradients()
    compiled = torch.compile(lambda s, t, m: MATCH[name](s, t, m).value, fullgraph=True, backend="aot_eager")
    value = compiled(*case.arguments())
    assert torch.allclose(value, expected)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(case.gradients(value), gradients, strict=True))


@every_kd
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_kd_losses_compile_into_one_graph(name: str) -> None:
    torch.compiler.reset()
    student, teacher, temperature = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6), torch.rand(4) + 1
    compiled = torch.compile(lambda s, t, x: KD[name](s, t, x).value, fullgraph=True, backend="aot_eager")
    values = [loss(student, teacher, temperature) for loss in (compiled, lambda *a: KD[name](*a).value)]
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    assert torch.allclose(*values)
    assert torch.allclose(*gradients, atol=1e-7)


@pytest.mark.parametrize("temperature", [2.0, torch.tensor([1.0, 2.0, 4.0])])
def test_t2_multiplies_the_squared_temperature_back_in(temperature: Any) -> None:
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    each = [1.0, 2.0, 4.0] if isinstance(temperature, torch.Tensor) else [temperature] * 3
    rows = [kd.ce(student[i], teacher[i], each[i]).value * each[i] ** 2 for i in range(3)]
    assert torch.allclose(kd.ce(student, teacher, temperature, t2=True).value, torch.stack(rows).mean())


def test_t2_keeps_gradients_comparable_across_temperatures() -> None:
    student, teacher = torch.randn(8, 5).requires_grad_(), torch.randn(8, 5)
    norms = [torch.autograd.grad(kd.ce(student, teacher, t, t2=True).value, student)[0].norm() for t in (8.0, 80.0)]
    assert 0.5 < norms[0] / norms[1] < 2.0


def test_cross_entropy_is_least_at_the_teacher() -> None:
    teacher = torch.randn(4, 6)
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kd.ce(student, teacher, 3.0).value, student)
    assert gradient.abs().max() < 1e-7
