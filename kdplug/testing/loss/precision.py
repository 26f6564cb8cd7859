"""Tests of the precision of a loss, which gets float32 inputs outside autocast, as in a run."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug.contracts.loss import COMPARES_ITEMS, RANDOM
from kdplug.testing.law import are_finite, broken, is_close, number, unless, where
from kdplug.testing.loss.case import LossCase
from kdplug.testing.sample import Sample


def _is_a_mean_or_sum(laws: type[LossCase]) -> bool:
    return laws.returns_sum() or laws.declares_reduction()


class PrecisionLaws(LossCase):
    """float32 is enough for inputs that float16 and bfloat16 models return."""

    def test_float32_agrees_with_float64(self) -> None:
        """Catches a sum or a softmax in half precision, and a difference of large squares, which float32 rounds away.

        A run computes a loss outside autocast, on outputs that are cast to float32.
        """
        scales = (1.0,) if self.draws == "probabilities" else (1.0, 300.0)
        for sample in self.samples():
            for scale in scales:
                what = "ordinary inputs" if scale == 1 else f"inputs of size {scale:g}"
                large = sample.rescaled(lambda tensor, scale=scale: tensor * scale)  # type: ignore[misc]
                self._in_both(large, what, saturates=scale > 1)

    @unless(COMPARES_ITEMS, RANDOM)
    @where(_is_a_mean_or_sum)
    def test_a_batch_of_many_items_is_counted(self) -> None:
        """Catches a count or a sum in float16, which is infinite above 65504 and makes the loss exactly 0."""
        small = self.sample(masked=False)
        if self.returns_sum() and not self.adds_up(small):
            broken(
                "returns a LossSum, but the sums of two halves of a batch are not those of the whole, so a batch of many "
                "items was not tried. Correct the count, or return a scalar if the loss compares items"
            )
        sample = self.sample_of(self.layout_of(large=True), masked=self.asks_for("mask"))
        self._in_both(sample, "a large batch")

    def adds_up(self, sample: Sample) -> bool:
        """Return whether the sums of two halves of a batch are those of the whole."""
        rows = list(range(sample.layout.student[0]))
        halves = [sample.rows(piece) for piece in (rows[:2], rows[2:]) if piece]
        (whole, expected), (found, gradients) = self.summed([sample]), self.summed(halves)
        return is_close(found, whole) and all(map(is_close, gradients, expected))

    def _in_both(self, sample: Sample, what: str, *, saturates: bool = False) -> None:
        """Compare the values, and the gradients too, unless the inputs are so large that a softmax ``saturates``."""
        single = sample.rescaled(torch.Tensor.float)
        outcome, gradients = self.gradients(single)
        expected, exact = self.gradients(single.rescaled(torch.Tensor.double))
        if not is_close(outcome.value, expected.value, 1e-3):
            broken(
                f"{what} give {number(outcome.value):.6g} in float32, but {number(expected.value):.6g} in float64. "
                "Compute in the precision of the inputs, including counts, and subtract before squaring"
            )
        if any(float(gradient.abs().max()) > torch.finfo(torch.float32).max for gradient in exact):
            return
        if not are_finite(gradients):
            broken(f"{what} give a non-finite gradient in float32. Compute in the precision of the inputs")
        if saturates:
            return
        worst = max(_error(one, two) for one, two in zip(gradients, exact, strict=True))
        if not worst <= _GRADIENT:
            broken(
                f"{what} give a gradient in float32 with an error of {worst:.1e} relative to its largest entry. Compute in "
                "the precision of the inputs, and subtract before squaring"
            )


_GRADIENT = 1e-2
"""Allowed error of a gradient in float32, relative to its largest entry."""


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).abs().max() / exact.abs().max().clamp_min(1e-30))
