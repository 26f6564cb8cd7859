"""Tests of a loss that declares ``whole_sequences``."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from kdplug.contracts.loss import reduction_of
from kdplug.host.component import Component
from kdplug.testing.law import advise, broken, is_close, number, where
from kdplug.testing.loss.case import LossCase, Outcome
from kdplug.testing.sample import Sample, draw

OF_ITEMS = frozenset(
    {
        "test_a_declared_mean_or_sum_is_one",
        "test_a_sum_over_items_may_be_cut_between_any_two",
        "test_a_trained_temperature_gets_its_gradient",
        "test_each_item_gets_its_own_temperature",
        "test_no_items_at_all_give_zero",
        "test_one_temperature_per_item_is_taken",
        "test_the_grouping_of_items_does_not_matter",
        "test_the_order_of_tokens_does_not_matter",
    }
)
"""Laws on a list of items, which a loss on whole sequences never gets."""

_STEP = 1e-5


def _takes_sequences(laws: type[LossCase]) -> bool:
    return laws.takes_sequences()


def _declares_reduction(laws: type[LossCase]) -> bool:
    return laws.takes_sequences() and laws.declares_reduction()


def _tempered(laws: type[LossCase]) -> bool:
    return laws.takes_sequences() and laws.asks_for("temperature")


class SequenceLaws(LossCase):
    """Gives a loss on whole sequences what a run gives it, and replaces the laws on a list of items."""

    @classmethod
    def _choose(cls) -> None:
        super()._choose()
        if cls._trouble is not None or not cls.takes_sequences():
            return
        for name in OF_ITEMS:
            setattr(cls, name, None)
        cls._left_out |= OF_ITEMS

    def sample(self, seed: int = 0, *, masked: bool | None = None) -> Sample:
        found = super().sample(seed, masked=masked)
        return in_sequences(found) if self.takes_sequences() else found

    def evaluate(self, sample: Sample, component: Component | None = None) -> Outcome:
        return super().evaluate(in_sequences(sample) if self.takes_sequences() else sample, component)

    @advise("Select positions and pairs with the mask, and divide by their number instead of the length")
    @where(_takes_sequences)
    def test_more_places_that_do_not_count_change_nothing(self) -> None:
        """Catches a sum divided by the length, a softmax over all places, a pair of a token and of padding."""
        sample = self.sample(masked=True)
        length = sample.student[0].shape[1]
        outcome, gradients = self.gradients(sample)
        for where_, before, after in (("at the end", 0, 3), ("at the start", 3, 0)):
            other, (of_longer, *_) = self.gradients(_longer(sample, before, after))
            if not is_close(other.value, outcome.value):
                broken(
                    f"three more masked positions {where_} changed the value from {number(outcome.value):.6g} to "
                    f"{number(other.value):.6g}"
                )
            if not is_close(of_longer[:, before : before + length], gradients[0]):
                broken(f"three more masked positions {where_} changed the gradient")

    @advise("Clamp the number of positions to at least 1 before dividing by it")
    @where(_takes_sequences)
    def test_sequences_without_a_place_that_counts_stay_finite(self) -> None:
        """Catches a division by the length of a sequence, if none of its places count: 0 / 0 spreads to every weight."""
        sample = self.sample(masked=True)
        assert sample.mask is not None
        for rows in ([1], [0, 1, 2]):
            mask = sample.mask.clone()
            mask[[row for row in rows if row < len(mask)]] = False
            outcome, gradients = self.gradients(sample.but(mask=mask))
            if not bool(outcome.total.isfinite()) or not all(bool(one.isfinite().all()) for one in gradients):
                broken(
                    f"a batch with {len(rows)} of {len(mask)} sequences fully masked gives the value "
                    f"{number(outcome.total):.6g} or a non-finite gradient"
                )

    @where(_declares_reduction)
    def test_a_declared_mean_or_sum_is_one_of_sequences(self) -> None:
        """Catches ``mean_over_items`` on a mean over tokens, or on a loss that compares sequences with each other.

        Large vocabularies are computed in chunks of whole sequences, which are combined as declared.
        """
        reduction = reduction_of(self._found.load())
        sample = self.sample(masked=True)
        whole, (expected, *_) = self.gradients(sample)
        if whole.is_sum:
            broken(
                f"declares {reduction}_over_items, but returns a LossSum, which needs no declaration. Remove the declaration"
            )
        rows = list(range(len(sample.student[0])))
        for size in (1, 2):
            pieces = [sample.rows(rows[start : start + size]) for start in range(0, len(rows), size)]
            shares = [len(piece.student[0]) / len(rows) if reduction == "mean" else 1.0 for piece in pieces]
            found = [self.gradients(piece) for piece in pieces]
            value = torch.stack([share * one.value for share, (one, _) in zip(shares, found, strict=True)]).sum()
            gradient = torch.cat([share * one[0] for share, (_, one) in zip(shares, found, strict=True)])
            if not is_close(value.detach(), whole.value.detach()) or not is_close(gradient, expected):
                broken(
                    f"declares {reduction}_over_items, whose items are sequences, but chunks of {size} of the {len(rows)} "
                    f"sequences give {number(value):.9g} instead of {number(whole.value):.9g}. Return a LossSum, or remove "
                    "the declaration"
                )

    @advise("Divide the logits by temperature.unsqueeze(-1) if the temperature is a tensor")
    @where(_tempered)
    def test_one_temperature_per_place_is_taken(self) -> None:
        """Catches a scheduled temperature broadcast along the wrong axis."""
        for masked in (False, True):
            sample = self.sample(masked=masked)
            same = torch.full(sample.student[0].shape[:-1], 3.0, dtype=torch.float64)
            expected = self.evaluate(sample.but(temperature=3.0)).value
            if not is_close(self.evaluate(sample.but(temperature=same)).value, expected):
                broken(
                    f"a temperature of 3 for each of the positions {list(same.shape)} gives a different value from one "
                    "temperature of 3"
                )

    @where(_tempered)
    def test_a_temperature_per_place_gets_its_gradient(self) -> None:
        """Catches a temperature that is detached, on one side or in its square: its scheduler would never be trained."""
        sample = self.sample(masked=True)
        items = sample.student[0].shape[:-1]
        at = torch.linspace(1.5, 3.0, items.numel(), dtype=torch.float64).view(items)
        direction = draw(tuple(items), 3)
        temperature = at.clone().requires_grad_()
        value = self.evaluate(sample.but(temperature=temperature)).value
        (gradient,) = torch.autograd.grad(value, temperature, allow_unused=True) if value.requires_grad else (None,)
        above, below = (self.evaluate(sample.but(temperature=at + step * direction)).value for step in (_STEP, -_STEP))
        expected = number(above - below) / (2 * _STEP)
        found = 0.0 if gradient is None else number((gradient * direction).sum())
        if not self.asks_for("draw_seed") and not math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-6):
            broken(
                f"the gradient of a temperature per position is {found:.6g}, but finite differences give {expected:.6g}. "
                "Detach the teacher's logits before they are divided by the temperature, and never detach the temperature"
            )


def in_sequences(sample: Sample) -> Sample:
    """Return the sample as a run gives it to the loss: always with a mask, and filled at places that do not count."""
    mask = torch.ones(sample.student[0].shape[:2], dtype=torch.bool) if sample.mask is None else sample.mask
    if mask.shape != sample.student[0].shape[:2]:
        return sample  # a mask that does not fit, for which the loss has to raise an error
    filled = sample.but(mask=mask, labels=sample.labels.masked_fill(~mask, -100))
    return filled.both(lambda tensor: _filled(tensor, mask))


def _filled(tensor: Tensor, mask: Tensor) -> Tensor:
    return tensor.masked_fill(~mask.unsqueeze(-1), 0.0) if tensor.shape[:2] == mask.shape else tensor


def _longer(sample: Sample, before: int, after: int) -> Sample:
    """Return the sample with more places, which do not count."""
    assert sample.mask is not None
    longer = sample.both(lambda tensor: functional.pad(tensor, (0, 0, before, after)))
    return longer.but(
        mask=functional.pad(sample.mask, (before, after)), labels=functional.pad(sample.labels, (before, after))
    )
