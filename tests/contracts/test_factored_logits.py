"""Logits as factors: the same numbers as the head gives, and clear words where the factors do not fit."""

from __future__ import annotations

import pytest
import torch

from kdplug import FactoredLogits, OutputsError, ShapeError


@pytest.fixture
def head():
    torch.manual_seed(3)
    head = torch.nn.Linear(4, 7).double()
    head.weight.data.mul_(3)
    return head


@pytest.fixture
def hidden():
    return torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def test_without_settings_they_are_what_the_linear_layer_gives(head, hidden):
    factored = FactoredLogits(hidden, head.weight, head.bias)
    assert torch.equal(factored.dense(), head(hidden))
    assert torch.equal(FactoredLogits(hidden, head.weight).dense(), hidden @ head.weight.T)


def test_the_scale_acts_on_the_heads_output_and_the_cap_on_what_it_scaled(head, hidden):
    dense = FactoredLogits(hidden, head.weight, head.bias, scale=0.5, softcap=2.0).dense()
    torch.testing.assert_close(dense, 2.0 * torch.tanh(head(hidden) * 0.5 / 2.0), rtol=1e-14, atol=0)


def test_the_shape_is_that_of_the_logits(head, hidden):
    factored = FactoredLogits(hidden, head.weight)
    assert (factored.shape, factored.classes) == ((2, 3, 7), 7)
    assert factored.shape == factored.dense().shape
    assert isinstance(factored.shape, torch.Size)


def test_items_are_chosen_by_mask_or_by_place(head, hidden):
    factored = FactoredLogits(hidden, head.weight, head.bias)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    chosen = factored.dense()[mask]
    torch.testing.assert_close(factored.at(mask).dense(), chosen, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(factored.at(torch.tensor([0, 2, 5])).dense(), chosen, rtol=1e-14, atol=1e-14)


def test_the_gradient_of_chosen_items_reaches_the_factors(head, hidden):
    factored = FactoredLogits(hidden.requires_grad_(), head.weight, head.bias)
    factored.at(torch.tensor([4])).dense().sum().backward()
    assert hidden.grad[1, 1].any()
    assert hidden.grad.count_nonzero() == 4
    assert head.weight.grad.any()


def test_detached_factors_carry_no_gradient(head, hidden):
    factored = FactoredLogits(hidden.requires_grad_(), head.weight, head.bias, softcap=3.0).detach()
    assert not any(tensor.requires_grad for tensor in factored.tensors)
    assert factored.softcap == 3.0


def test_the_first_classes_are_the_head_without_its_last_rows(head, hidden):
    factored = FactoredLogits(hidden, head.weight, head.bias)
    torch.testing.assert_close(factored.first(5).dense(), factored.dense()[..., :5], rtol=1e-14, atol=1e-14)
    assert factored.first(7) is factored
    with pytest.raises(ShapeError, match=r"^weight: cannot select the first 8 of 7 classes$"):
        factored.first(8)


def test_they_move_to_a_device_with_all_factors(head, hidden):
    moved = FactoredLogits(hidden, head.weight, head.bias, scale=2.0).to("meta")
    assert {tensor.device.type for tensor in moved.tensors} == {"meta"}
    assert (moved.device.type, moved.scale) == ("meta", 2.0)


@pytest.mark.parametrize(
    ("hidden", "weight", "bias", "message"),
    [
        ((2, 4), (7, 5), None, r"^weight: hidden \[2, 4\] and weight \[7, 5\] differ in width: 4 against 5"),
        ((2, 4), (4,), None, r"^weight: must be \[classes, width\], got \[4\]"),
        ((2, 4), (7, 4), (4,), r"^bias: \[4\] does not match weight \[7, 4\], which needs one value per class"),
        ((2, 4), (7, 4), (7, 1), r"^bias: must be \[classes\], got \[7, 1\]"),
        ((), (7, 4), None, r"^hidden: must be \[\*items, width\], got a scalar"),
    ],
)
def test_factors_that_do_not_fit_are_named_with_their_shapes(hidden, weight, bias, message):
    with pytest.raises(ShapeError, match=message):
        FactoredLogits(torch.zeros(hidden), torch.zeros(weight), None if bias is None else torch.zeros(bias))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": [1.0]}, r"^hidden: must be a floating-point tensor, got list"),
        ({"weight": torch.zeros(7, 4, dtype=torch.int64)}, r"^weight: .*got torch\.int64"),
        ({"scale": float("nan")}, r"^scale: must be a finite number, got nan"),
        ({"scale": torch.tensor(1.0)}, r"^scale: must be a finite number, got tensor"),
        ({"softcap": 0}, r"^softcap: must be above 0, got 0"),
        ({"softcap": True}, r"^softcap: must be a finite number, got True"),
    ],
)
def test_what_is_no_factor_is_refused_by_name(changed, message):
    with pytest.raises(OutputsError, match=message):
        FactoredLogits(**{"hidden": torch.zeros(2, 4), "weight": torch.zeros(7, 4), **changed})


@pytest.mark.parametrize("items", [torch.ones(3, 2, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)])
def test_items_of_another_shape_are_refused(head, hidden, items):
    with pytest.raises(ShapeError, match=r"^items: "):
        FactoredLogits(hidden, head.weight).at(items)
