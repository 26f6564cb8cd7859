"""Shapes that TextBrewer broadcasts by accident are errors that name both shapes and the axis."""

from __future__ import annotations

import pytest
import torch
from presets_strategies import (
    ATTENTION,
    HIDDEN,
    KD,
    MATCH,
    PAIR,
    features,
    finite,
)

from kdplug import ShapeError
from kdplug_presets import gram

every_match = pytest.mark.parametrize("name", MATCH)
every_kd = pytest.mark.parametrize("name", KD)


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
    with pytest.raises(ShapeError, match=r"the shape of mask, \[.*must be \[3, 4\]"):
        case.loss()


@pytest.mark.parametrize("name", ATTENTION)
def test_a_mask_for_maps_that_are_not_square_is_an_error(name: str) -> None:
    maps = torch.randn(3, 2, 4, 5)
    with pytest.raises(ShapeError, match="there must be as many queries as keys"):
        MATCH[name](maps, maps, torch.ones(3, 4))
    assert finite(MATCH[name](maps, maps).value)


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
    with pytest.raises(ShapeError, match="must be one tensor, got a list of 2"):
        MATCH[name]([case.student[0]] * 2, [case.teacher[0]] * 2)


def test_nst_needs_one_width_on_each_side_and_takes_another_on_the_other() -> None:
    narrow, wide = torch.randn(2, 3, 4), torch.randn(2, 3, 6)
    assert finite(gram.nst([narrow, narrow], (wide, wide)).value)
    with pytest.raises(ShapeError, match=r"student_features\[0\].*'width': 4 against 6"):
        gram.nst([narrow, wide], [wide, wide])
