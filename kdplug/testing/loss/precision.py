"""Laws for a loss under autocast."""

from __future__ import annotations

import torch

from kdplug.testing.law import are_finite, broken, is_close, number
from kdplug.testing.loss.case import LossCase
from kdplug.testing.sample import Sample, make_sample


class PrecisionLaws(LossCase):
    """Half-precision inputs are computed in float32 arithmetic."""

    def test_bfloat16_autocast_agrees_with_float32(self) -> None:
        """Catches a sum or a softmax in bfloat16, which has three decimal digits."""
        self._compare_halves(torch.bfloat16)

    def test_float16_autocast_agrees_with_float32(self) -> None:
        """Catches squares of features in float16, where 256 squared is already infinite."""
        self._compare_halves(torch.float16)

    def test_a_float16_batch_of_many_items_is_counted(self) -> None:
        """Catches a count in the dtype of the features: above 65504 it is infinite, and the loss exactly 0."""
        layout = self.layout_of(large=True)
        masked = self.asks_for("mask")
        self._check_half(
            self.named(make_sample(layout, masked=masked, classes=layout.student[-1])), torch.float16, "a large batch"
        )

    def _compare_halves(self, dtype: torch.dtype) -> None:
        scales = (1.0,) if self.draws == "probabilities" else (1.0, 300.0)
        for sample in self.samples():
            for scale in scales:
                what = "ordinary inputs" if scale == 1 else f"inputs of size {scale:g}"
                self._check_half(sample.both(lambda tensor, scale=scale: tensor * scale), dtype, what)  # type: ignore[misc]

    def _check_half(self, sample: Sample, dtype: torch.dtype, what: str) -> None:
        half = sample.both(lambda tensor: tensor.to(dtype))
        expected, exact = self.gradients(half.both(lambda tensor: tensor.float()))
        with torch.autocast("cpu", dtype=dtype):
            outcome, gradients = self.gradients(half, self.build_in(torch.float32))
        name = str(dtype).removeprefix("torch.")
        if not is_close(outcome.value, expected.value, 1e-3):
            broken(
                f"{what} under {name} autocast give {number(outcome.value):.6g}, but in float32 "
                f"{number(expected.value):.6g}. Compute in float32 (student_logits.float()), including counts"
            )
        fits = all(float(gradient.abs().max()) < torch.finfo(dtype).max for gradient in exact)
        if fits and not are_finite(gradients):
            broken(f"{what} under {name} autocast give a non-finite gradient")
