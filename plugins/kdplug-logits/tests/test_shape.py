"""Shapes that fit, and the words for those that do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from logits_strategies import LABELLED, LOSSES, TEMPERED, Case, case

from kdplug import SettingError, ShapeError

every = pytest.mark.parametrize("name", LOSSES)
tempered = pytest.mark.parametrize("name", TEMPERED)


@every
@pytest.mark.parametrize(
    ("student", "teacher", "says"),
    [
        ((3, 5), (4, 5), r"\[3, 5\] and teacher_logits \[4, 5\] differ on axis 'batch': 3 against 4"),
        ((2, 3, 5), (2, 4, 5), r"differ on axis 'length': 3 against 4"),
        ((3, 5), (5,), r"\[3, 5\] and teacher_logits \[5\] must have the same number of axes"),
        ((), (), r"must have the same number of axes, at least one"),
    ],
)
def test_items_that_differ_are_an_error_that_names_the_axis(name: str, student: Any, teacher: Any, says: str) -> None:
    with pytest.raises(ShapeError, match=rf"^{name}: .*{says}"):
        Case(torch.zeros(student), torch.zeros(teacher), torch.zeros(student[:-1], dtype=torch.long)).loss(name)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "uld"])
@pytest.mark.parametrize(("student", "teacher"), [(5, 4), (5, 1), (1, 5)])
def test_classes_that_differ_are_an_error_and_not_a_broadcast(name: str, student: int, teacher: int) -> None:
    with pytest.raises(ShapeError, match=f"differ on axis 'classes': {student} against {teacher}"):
        Case(torch.zeros(3, student), torch.zeros(3, teacher), torch.zeros(3, dtype=torch.long)).loss(name)


@every
def test_what_is_no_tensor_is_an_error(name: str) -> None:
    with pytest.raises(ShapeError, match="must be tensors, got Tensor and tuple"):
        Case(torch.zeros(3, 5), (torch.zeros(3, 5),), torch.zeros(3, dtype=torch.long)).loss(name)  # type: ignore[arg-type]


@every
def test_one_item_needs_no_axis_of_items(name: str) -> None:
    found = case(1, 5)
    single = Case(found.student[0], found.teacher[0], found.labels[0])
    assert torch.allclose(single.loss(name).value, found.loss(name).value)
    assert single.loss(name).count == found.loss(name).count


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in (*LABELLED, "ranking", "dist")])
def test_the_count_is_that_of_the_items(name: str) -> None:
    assert case(2, 3, 5).loss(name).count == 6


@every
@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (3, 0, 5)])
def test_no_items_give_zero_that_is_connected_to_the_student(name: str, shape: tuple[int, ...]) -> None:
    found = case(*shape)
    assert found.loss(name).value == 0
    assert found.loss(name).count == (1 if name == "dist" else 0)
    assert found.gradient(name).shape == shape


@every
def test_the_temperature_gets_a_gradient_and_the_teacher_none(name: str) -> None:
    found = case(3, 5)
    found.student.requires_grad_()
    found.teacher.requires_grad_()
    found.temperature = torch.ones(3, dtype=torch.float64, requires_grad=True)
    found.loss(name).value.backward()
    assert found.student.grad is not None
    assert found.teacher.grad is None
    assert (found.temperature.grad is not None) == (name in TEMPERED)


@every
def test_inputs_are_left_as_they_were(name: str) -> None:
    found = case(3, 5)
    before = [tensor.clone() for tensor in (found.student, found.teacher, found.labels)]
    found.gradient(name)
    assert all(map(torch.equal, before, (found.student, found.teacher, found.labels)))


def per_item(shape: tuple[int, ...]) -> torch.Tensor:
    """Temperatures that differ along every axis."""
    return 1.0 + torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape) / 4


@tempered
@pytest.mark.parametrize(
    "shape", [(), (1,), (1, 1), (1, 1, 1), (3, 4), (3, 4, 1), (3, 1), (1, 4), (3, 1, 1), (1, 4, 1)]
)
def test_a_temperature_of_every_legal_shape_runs_along_the_axes_it_names(name: str, shape: Any) -> None:
    found = case(3, 4, 5)
    found.temperature = per_item(shape)
    value = found.loss(name).value
    along = found.temperature.view(()) if found.temperature.numel() == 1 else found.temperature
    found.temperature = (along.squeeze(-1) if along.dim() == 3 else along).expand(3, 4)
    assert torch.allclose(value, found.loss(name).value)


@tempered
@pytest.mark.parametrize("shape", [(3,), (4,), (5,), (3, 3), (4, 3), (3, 4, 5), (1, 1, 5), (1, 3, 4, 1), (0,)])
def test_an_ambiguous_or_wrong_temperature_is_an_error_and_not_a_broadcast(name: str, shape: Any) -> None:
    found = case(3, 4, 5)
    found.temperature = per_item(shape)
    with pytest.raises(ShapeError, match=rf"^{name}: the shape of temperature, \[.*does not match logits \[3, 4, 5\]"):
        found.loss(name)


@tempered
@pytest.mark.parametrize("temperature", [0, 0.0, -3.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_an_error(name: str, temperature: float) -> None:
    found = case(3, 5)
    found.temperature = temperature
    with pytest.raises(SettingError, match="temperature must be a positive finite number"):
        found.loss(name)
