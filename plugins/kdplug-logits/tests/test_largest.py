"""The largest numbers of a row are those that sorting finds."""

from __future__ import annotations

import pytest
import torch

from kdplug_logits.topk import _GROUP, _WORTH, largest

LONG = _GROUP * _WORTH * 3


@pytest.mark.parametrize("classes", [40, LONG, LONG + 7, 2 * LONG])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_they_are_found_with_their_places(shape, classes):
    torch.manual_seed(classes)
    values = torch.stack([torch.randperm(classes) for _ in range(max(1, torch.Size(shape).numel()))])
    values = values[: torch.Size(shape).numel()].view(*shape, classes).double()
    found, ids = largest(values, 3)
    expected, places = values.sort(dim=-1, descending=True)
    assert torch.equal(found, expected[..., :3])
    assert torch.equal(ids, places[..., :3])


@pytest.mark.parametrize("place", [0, LONG - 1, LONG, LONG + 6])
def test_one_is_found_wherever_it_is(place):
    values = torch.zeros(LONG + 7)
    values[place] = 1
    found, ids = largest(values, 3)
    assert (found[0], ids[0]) == (1, place)


def test_of_equal_ones_each_is_given_once():
    found, ids = largest(torch.zeros(4, LONG + 7), 3)
    assert not found.any()
    assert all(len(set(row)) == 3 for row in ids.tolist())


def test_what_is_ruled_out_comes_last_and_nan_first():
    values = torch.full((LONG,), -torch.inf)
    values[[5, 700]] = torch.tensor([1.0, torch.nan])
    found, ids = largest(values, 3)
    assert found[0].isnan()
    assert found[1:].tolist() == [1, -torch.inf]
    assert ids[:2].tolist() == [700, 5]


def test_their_gradient_goes_where_they_are():
    values = torch.randn(2, LONG, dtype=torch.float64, requires_grad=True)
    found, ids = largest(values, 3)
    found.sum().backward()
    assert torch.equal(values.grad, torch.zeros_like(values).scatter(-1, ids, 1.0))
