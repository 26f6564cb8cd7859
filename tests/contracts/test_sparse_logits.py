"""A teacher known at a few classes: the three forms, and clear words for what is none of them."""

from __future__ import annotations

import pytest
import torch

from kdplug import OutputsError, ShapeError, SparseLogits

IDS = torch.tensor([[0, 4], [3, 1]])
LOGS = torch.tensor([[0.5, 0.2], [0.3, 0.3]]).log()
TAIL = torch.tensor([0.3, 0.4]).log()


@pytest.fixture
def logits():
    return 3 * torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_top_classes_and_the_tail_are_those_of_the_softmax(logits, temperature):
    top = SparseLogits.top(logits, 2, temperature)
    probs = (logits / temperature).softmax(-1)
    largest = probs.topk(2)
    torch.testing.assert_close(top.log_probs.exp(), largest.values)
    assert torch.equal(top.ids, largest.indices)
    torch.testing.assert_close(top.tail.exp(), 1 - largest.values.sum(-1))
    assert top.temperature == temperature


def test_a_tail_of_no_classes_is_exactly_nothing(logits):
    top = SparseLogits.top(logits, 9)
    assert top.ids.shape == (2, 3, 6)
    assert top.tail.isneginf().all()


def test_a_tail_far_below_rounding_keeps_its_digits():
    top = SparseLogits.top(torch.tensor([[60.0, 0.0, 0.0]]), 1)
    torch.testing.assert_close(top.tail, torch.tensor([2.0]).log() - 60, rtol=1e-6, atol=0)


def test_half_precision_is_widened_before_the_softmax():
    top = SparseLogits.top(torch.zeros(1, 3, dtype=torch.bfloat16), 1)
    assert top.log_probs.dtype is top.tail.dtype is torch.float32


def test_the_shape_is_that_of_the_logits_it_means(logits):
    assert SparseLogits.top(logits, 2).shape == logits.shape
    assert SparseLogits(IDS, LOGS, 6).shape == (2, 6)


def test_items_are_chosen_with_all_their_parts(logits):
    mask = torch.tensor([[True, False, True], [False, False, True]])
    chosen, expected = SparseLogits.top(logits, 2).at(mask), SparseLogits.top(logits[mask], 2)
    for name in ("ids", "log_probs", "tail"):
        assert torch.equal(getattr(chosen, name), getattr(expected, name))
    sample = SparseLogits(IDS, None, 6, weights=LOGS.exp()).at(torch.tensor([1]))
    assert (sample.log_probs, sample.weights.tolist()) == (None, [LOGS.exp()[1].tolist()])


def test_they_move_to_a_device_with_all_parts():
    moved = SparseLogits(IDS, LOGS, 6, TAIL, temperature=2.0).to("meta")
    assert {part.device.type for part in (moved.ids, moved.log_probs, moved.tail)} == {"meta"}
    assert (moved.weights, moved.temperature) == (None, 2.0)


def test_it_is_detached_by_nature():
    sparse = SparseLogits(IDS, LOGS, 6)
    assert sparse.detach() is sparse


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"ids": IDS.int()}, OutputsError, r"^ids: must be an int64 tensor, got torch\.int32"),
        ({"ids": [[0]]}, OutputsError, r"^ids: must be an int64 tensor, got list"),
        ({"classes": 4}, OutputsError, r"^ids: must be in \[0, 4\), got 0 to 4: classes is the width of the logits"),
        ({"classes": 0}, OutputsError, r"^classes: must be a whole number above 0, got 0"),
        ({"log_probs": None}, OutputsError, r"^log_probs: is required unless weights are given"),
        ({"log_probs": LOGS.clone().requires_grad_()}, OutputsError, r"^log_probs: requires grad"),
        ({"log_probs": LOGS[:1]}, ShapeError, r"^log_probs: must be \[\*items, K\] = \[2, 2\].*got \[1, 2\]"),
        ({"tail": TAIL[:1]}, ShapeError, r"^tail: must be \[\*items\] = \[2\] to match ids, got \[1\]"),
        ({"tail": TAIL, "weights": LOGS.exp()}, OutputsError, r"^tail: cannot be combined with weights"),
        ({"weights": IDS}, OutputsError, r"^weights: must be a floating-point tensor, got torch\.int64"),
        ({"temperature": 0.0}, OutputsError, r"^temperature: must be above 0 and finite, got 0\.0"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(changed, error, message):
    with pytest.raises(error, match=message):
        SparseLogits(**{"ids": IDS, "log_probs": LOGS, "classes": 6, **changed})


TEMPERATURES = (1.0, 2.5, 4.0, 50.0)


@pytest.mark.parametrize("k", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_at_each_temperature_the_distribution_is_that_of_the_logits(logits, k, temperature):
    several, alone = SparseLogits.top(logits, k, TEMPERATURES), SparseLogits.top(logits, k, temperature)
    found = several.at_temperature(temperature)
    assert (found.temperature, found.tails, several.temperature) == (
        temperature,
        {} if temperature > 1 else several.tails,
        1.0,
    )
    assert torch.equal(found.ids, alone.ids)
    for name in ("log_probs", "tail"):
        torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=1e-12, atol=1e-14)
    mass = found.log_probs.exp().sum(-1) + found.tail.exp()
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=1e-14)


def test_a_thin_top_of_many_classes_keeps_its_digits_in_float32():
    logits = torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0))
    found = SparseLogits.top(logits, 3, (1.0, 20.0)).at_temperature(20.0)
    expected = (logits.double() / 20).log_softmax(-1).gather(-1, found.ids)
    torch.testing.assert_close(found.log_probs.double(), expected, rtol=0, atol=2e-6)


def test_a_class_that_is_ruled_out_stays_so_at_each_temperature():
    found = SparseLogits.top(torch.tensor([[1.0, -torch.inf, 0.0]]), 3, (1.0, 4.0)).at_temperature(4.0)
    assert found.log_probs.isneginf().sum() == 1
    assert found.tail.isneginf().all()
    torch.testing.assert_close(found.log_probs.exp().sum(-1), torch.ones(1))


def test_a_temperature_without_a_tail_is_an_error_that_lists_those_with_one(logits):
    several = SparseLogits.top(logits, 2, (4, 1))
    assert several.temperatures == (1, 4)
    assert (several.is_known_at(4.0000001), several.is_known_at(2)) == (True, False)
    with pytest.raises(OutputsError, match=r"^logits: are SparseLogits known only at temperature 1 and 4, not at 2$"):
        several.at_temperature(2)


def test_temperatures_that_round_to_one_share_a_tail(logits):
    several = SparseLogits.top(logits, 2, (3 * 1.1, 1.0, 1.0 + 1e-9, 3.3))
    assert several.temperatures == (1.0, 3.3)
    assert several.at_temperature(1.0 + 1e-9) is several
    assert several.is_known_at(3 * 1.1)


def test_items_are_chosen_with_the_tail_at_each_temperature(logits):
    mask = torch.tensor([[True, False, True], [False, False, True]])
    chosen = SparseLogits.top(logits, 2, (1, 4)).at(mask)
    assert torch.equal(chosen.tails[4], SparseLogits.top(logits[mask], 2, (1, 4)).tails[4])
    assert chosen.to("cpu").tails[4].shape == (3,)


@pytest.mark.parametrize(
    ("tails", "words"),
    [
        ({0.0: TAIL}, "must be at temperatures above 0 other than 1, got 0.0"),
        ({1.0: TAIL}, "must be at temperatures above 0 other than 1, got 1.0"),
        ({2.0: [0.1, 0.2]}, "must be a floating-point tensor, got list"),
    ],
)
def test_tails_at_no_other_temperature_are_an_error(tails, words):
    with pytest.raises(OutputsError, match=words):
        SparseLogits(IDS, LOGS, 6, TAIL, tails=tails)


def test_tails_of_another_shape_or_of_a_sample_are_errors():
    with pytest.raises(ShapeError, match=r"must be \[\*items\] = \[2\]"):
        SparseLogits(IDS, LOGS, 6, TAIL, tails={2.0: TAIL[:1]})
    with pytest.raises(OutputsError, match="require a tail and log_probs"):
        SparseLogits(IDS, None, 6, weights=LOGS.exp(), tails={2.0: TAIL})
