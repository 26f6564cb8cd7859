"""Tests of the mask of a loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdplug.contracts.loss import RANDOM
from kdplug.testing.law import advise, apart, are_finite, broken, is_close, number, unless, where
from kdplug.testing.loss.case import LossCase, Outcome
from kdplug.testing.sample import Sample


def _masked(laws: type[LossCase]) -> bool:
    return laws.asks_for("mask")


def _padded(laws: type[LossCase]) -> bool:
    return _masked(laws) and bool(laws.layout_of().token_axes)


class MaskLaws(LossCase):
    """Masked items have no effect."""

    @where(_masked)
    def test_padding_that_is_not_finite_does_not_spread(self) -> None:
        """Catches multiplication by the mask, which turns ``nan`` or ``-inf`` in padding into a ``nan`` loss or gradient."""
        for filling in (math.nan, math.inf, -math.inf):
            filled = self.sample(masked=True).fill_hidden(filling)
            outcome, gradients = self.gradients(filled)
            if not are_finite([outcome.value]):
                broken(
                    f"padding of {filling:g} gives the value {number(outcome.value)}: select with where instead of "
                    "multiplying"
                )
            if not are_finite(gradients):
                broken(f"padding of {filling:g} gives a non-finite gradient: select before computing, not after")
            if any(bool(one[filled.hidden_slots(one)].any()) for one in gradients):
                broken(f"padding of {filling:g} gets a gradient: select before computing, not after")

    @advise("Replace padding on both sides before any mean, maximum, norm or softmax, and use mask.sum() as the count")
    @where(_masked)
    def test_padding_changes_nothing(self) -> None:
        """Catches padding included in a norm, a mean, a maximum or a softmax."""
        sample = self.sample(masked=True)
        outcome, gradients = self.gradients(sample)
        for filling in (1e6, -1e6, 0.0, math.nan, math.inf, -math.inf):
            other, others = self.gradients(sample.fill_hidden(filling))
            if not is_close(other.value, outcome.value):
                broken(f"padding of {filling:g} changed {_both(outcome, other)}")
            if not all(is_close(one, two) for one, two in zip(others, gradients, strict=True)):
                broken(f"padding of {filling:g} changed the gradient by {apart(others, gradients):.3g}")

    @advise("Use mask.sum() as the count, not the padded length")
    @unless(RANDOM)
    @where(_padded)
    def test_longer_padding_changes_nothing(self) -> None:
        """Catches a sum over valid tokens divided by the padded length; a count of all positions."""
        sample = self.sample(masked=True)
        assert sample.mask is not None
        length = sample.mask.shape[1]
        longer = sample.tokens([*range(length), *range(length - 1)])
        assert longer.mask is not None
        longer.mask[:, length:] = False
        short, long = self.evaluate(sample), self.evaluate(longer)
        if not is_close(long.value, short.value):
            broken(f"padding to {2 * length - 1} tokens instead of {length} changed {_both(short, long)}")

    @advise("Without a mask, compute the same as with a mask that is True everywhere")
    @where(_masked)
    def test_a_mask_that_leaves_nothing_out_changes_nothing(self) -> None:
        """Catches one definition with a mask and another without."""
        sample = self.sample(masked=False)
        full = sample.but(mask=torch.ones(sample.layout.mask, dtype=torch.bool))
        (without, one), (with_mask, two) = self.gradients(sample), self.gradients(full)
        if not is_close(with_mask.value, without.value):
            broken(f"a mask that is True everywhere changed {_both(without, with_mask)}")
        if not all(is_close(a, b) for a, b in zip(one, two, strict=True)):
            broken(f"a mask that is True everywhere changed the gradient by {apart(one, two):.3g}")

    @advise("Return LossSum(total, mask.sum()), where total is the undivided sum over the selected items")
    @where(_masked)
    def test_an_empty_mask_gives_zero(self) -> None:
        """Catches 0 / 0: one batch of padding would turn every student weight into ``nan``."""
        sample = self.sample(masked=True)
        nothing = torch.zeros(sample.layout.mask, dtype=torch.bool)
        for filling in (0.0, math.nan):
            self._expect_zero(sample.but(mask=nothing).fill_hidden(filling), "a mask that is False everywhere")

    @advise("Divide by the number of all counted tokens, or by the length of an example clamped to 1")
    @where(_padded)
    def test_an_example_without_a_token_changes_nothing(self) -> None:
        """Catches a division by each example's length, if one is 0."""
        sample = self.sample(masked=True)
        assert sample.mask is not None
        mask = sample.mask.clone()
        mask[1] = False
        outcome, gradients = self.gradients(sample.but(mask=mask))
        if not are_finite([outcome.value]) or not are_finite(gradients):
            broken(
                f"an example that consists of padding gives the value {number(outcome.value)} or a non-finite gradient"
            )

    @advise("Return LossSum(values.sum(), values.numel()), without dividing")
    @where(lambda laws: laws.on_logits() and laws.returns_sum())
    def test_no_items_at_all_give_zero(self) -> None:
        """Catches the mean of an empty selection, which is ``nan``."""
        sample = self.sample(masked=False)
        flat = sample.both(lambda tensor: tensor.reshape(-1, tensor.shape[-1])).but(labels=sample.labels.reshape(-1))
        self._expect_zero(flat.rows([]), "logits of no items")

    def _expect_zero(self, sample: Sample, what: str) -> None:
        outcome, gradients = self.gradients(sample)
        if number(outcome.value) != 0.0:
            broken(f"{what} should give 0, got {number(outcome.value):.3g}")
        if not all(_is_zero(gradient) for gradient in gradients):
            broken(f"{what} should give a gradient of 0")


def _is_zero(gradient: Tensor) -> bool:
    return are_finite([gradient]) and not bool(gradient.any())


def _both(before: Outcome, after: Outcome) -> str:
    return f"the value by {number((after.value - before.value).abs()):.3g} (from {number(before.value):.6g})"
