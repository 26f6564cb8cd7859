"""Losses that know the right class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from logits_strategies import LABELLED, LOSSES, Case, case

from kdplug import OutputsError, ShapeError

every = pytest.mark.parametrize("name", LABELLED)


@every
@pytest.mark.parametrize("none", [-100, -1])
def test_items_without_a_label_are_left_out_of_sum_and_count(name: str, none: int) -> None:
    found = case(6, 5)
    found.temperature = 2.0
    expected = Case(found.student[2:], found.teacher[2:], found.labels[2:].clone(), 2.0).loss(name)
    found.labels[:2] = none
    loss = found.loss(name)
    assert loss.count == expected.count == 4
    assert torch.allclose(loss.total, expected.total)
    assert not found.gradient(name)[:2].any()


@every
def test_what_stands_in_an_item_without_a_label_changes_nothing(name: str) -> None:
    found = case(6, 5)
    found.labels[0] = -100
    expected, gradient = found.loss(name).value, found.gradient(name)
    for junk in (float("nan"), float("inf"), -float("inf")):
        found.student, found.teacher = found.student.detach().clone(), found.teacher.clone()
        found.student[0], found.teacher[0] = junk, junk
        assert torch.equal(found.loss(name).value, expected)
        assert torch.equal(found.gradient(name), gradient)


@every
def test_no_label_at_all_gives_zero_with_a_gradient_of_zero(name: str) -> None:
    found = case(6, 5)
    found.labels[:] = -100
    assert found.loss(name).count == 0
    assert found.loss(name).value == 0
    assert not found.gradient(name).any()


@every
def test_labels_of_any_integer_type_are_taken(name: str) -> None:
    found = case(6, 5)
    expected = found.loss(name).value
    for dtype in (torch.int32, torch.int8, torch.uint8):
        found.labels = found.labels.to(dtype)
        assert torch.equal(found.loss(name).value, expected)


@every
@pytest.mark.parametrize(
    ("labels", "error", "says"),
    [
        (None, OutputsError, "needs labels, but the student returned none"),
        (torch.zeros(6), OutputsError, r"labels must be integer class indices, got torch\.float32"),
        (
            torch.zeros(6, 5, dtype=torch.long),
            ShapeError,
            r"the shape of labels, \[6, 5\], does not match logits \[6, 5\]",
        ),
        (
            torch.zeros(1, dtype=torch.long),
            ShapeError,
            r"the shape of labels, \[1\], does not match logits \[6, 5\]: it must be \[6\], one label per item",
        ),
    ],
)
def test_labels_that_do_not_fit_are_an_error(name: str, labels: Any, error: type[Exception], says: str) -> None:
    found = case(6, 5)
    with pytest.raises(error, match=f"^{name}: {says}"):
        LOSSES[name](found.student, found.teacher, 1.0, labels)


@every
def test_a_label_beyond_the_classes_is_an_error(name: str) -> None:
    found = case(6, 5)
    found.labels[3] = 5
    with pytest.raises(OutputsError, match=f"{name}: label 5 does not exist: there are 5 classes"):
        found.loss(name)


@every
def test_one_class_is_an_error(name: str) -> None:
    with pytest.raises(ShapeError, match="needs at least two classes"):
        case(6, 1).loss(name)
