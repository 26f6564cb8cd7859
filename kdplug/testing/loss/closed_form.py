"""Tests that the closed form of a loss on logits has the same values and gradient as the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdplug.contracts.loss import CLOSED_FORM
from kdplug.host.component import closed_form_of
from kdplug.testing.law import advise, are_finite, broken, is_close, number, where
from kdplug.testing.loss.case import LossCase
from kdplug.testing.sample import Sample

_OFFSETS = (0.0, -100.0, -1000.0, 1000.0)

_OFF = 1e-4
"""Allowed gradient error in float32, relative to its largest entry: ten times that of the loss through autograd."""


def _declares(laws: type[LossCase]) -> bool:
    return laws.on_logits() and hasattr(laws._found.load(), CLOSED_FORM)  # noqa: SLF001  own attribute


class ClosedFormLaws(LossCase):
    """Compares the closed form with the loss, which runs through autograd."""

    @advise(
        "Derive the gradient from the loss again, with every setting and the factor 1 / temperature of the "
        "inner derivative"
    )
    @where(_declares)
    def test_its_closed_form_is_the_loss(self) -> None:
        """Catches a temperature or setting that the closed form ignores, a wrongly derived gradient."""
        for temperature in (1.0, 2.0, 0.5):
            self._compare(self.sample(masked=False).but(temperature=temperature), 1e-9, f"at temperature {temperature}")

    @advise("Divide each row by its own temperature, which is [n, 1]")
    @where(_declares)
    def test_its_closed_form_takes_a_temperature_for_each_item(self) -> None:
        """Catches temperatures broadcast along the classes."""
        sample = _in_a_row(self.sample(masked=False))
        items = sample.student[0].shape[0]
        temperature = torch.linspace(0.5, 3.0, items, dtype=torch.float64)
        self._compare(sample.but(temperature=temperature), 1e-9, "with a temperature for each item")

    @advise("Compute each row alone, without a mean, maximum or count of the block")
    @where(_declares)
    def test_its_closed_form_takes_rows_alone(self) -> None:
        """Catches values or gradients that depend on other rows of the block."""
        sample = _in_a_row(self.sample(masked=False))
        whole, gradient = self._closed(sample)
        for row in range(len(whole)):
            value, own = self._closed(sample.rows([row]))
            if not is_close(value[0], whole[row]) or not is_close(own[0], gradient[row]):
                broken("the closed form gives different results for a row alone and within a block of rows")

    @advise("Set the terms of classes with probability 0 to 0 before summing")
    @where(_declares)
    def test_its_closed_form_stays_the_loss_where_a_class_is_ruled_out(self) -> None:
        """Catches ``0 * log(0)``. Either side may rule classes out with ``-inf``, and with few classes the tail is empty."""
        sample = self.sample(masked=False)
        for side in ("teacher", "student", "both"):
            changed = sample.but(
                student=_ruled_out(sample.student, side != "teacher"),
                teacher=_ruled_out(sample.teacher, side != "student"),
            )
            outcome, gradients = self.gradients(changed)
            if are_finite([outcome.value]) and are_finite(gradients):
                self._compare(changed, 1e-9, f"if a logit of the {side} is -inf")

    @advise("Use log_softmax instead of the logarithm of a softmax")
    @where(_declares)
    def test_its_closed_form_stays_finite_where_the_loss_does(self) -> None:
        """Catches probabilities that underflow to 0 before a logarithm."""
        sample = self.sample(masked=False).both(lambda tensor: (tensor * 1e4).float()).but(temperature=1.0)
        outcome, gradients = self.gradients(sample)
        if are_finite([outcome.value]) and are_finite(gradients):
            self._compare(sample, 1e-3, "at logits of 1e4 in float32")

    @advise("Use softmax, or subtract each row's largest logit before the exponential")
    @where(_declares)
    def test_its_closed_form_keeps_its_gradient_under_an_offset(self) -> None:
        """Catches a difference of large logits, where float32 loses precision. Subtract each row's largest logit first."""
        sample = self.sample(masked=False)  # at temperature 2, which is exact
        near = tuple(theirs + (own - theirs) * 0.05 for own, theirs in zip(sample.student, sample.teacher, strict=True))
        sample = _in_a_row(sample.but(student=near))
        for own in _OFFSETS:
            for theirs in {own, 0.0}:
                moved = _moved(sample, own, theirs)
                outcome, (exact,) = self.gradients(moved.both(torch.Tensor.double))
                values, closed = self._closed(moved)
                if not is_close(values.mean(), outcome.value, _OFF):
                    broken(
                        f"with {own:g} added to the student's logits and {theirs:g} to the teacher's, the closed form "
                        f"in float32 gives {number(values.mean()):.6g} and the loss {number(outcome.value):.6g}"
                    )
                error = float((closed / len(closed) - exact).abs().max() / exact.abs().max())
                if not error <= _OFF:
                    broken(
                        f"with {own:g} added to the student's logits and {theirs:g} to the teacher's, the gradient of "
                        f"the closed form in float32 has an error of {error:.1e} relative to its largest entry, above "
                        f"{_OFF:g}"
                    )

    def _closed(self, sample: Sample) -> tuple[Tensor, Tensor]:
        student, teacher = (side[0].detach().clone() for side in (sample.student, sample.teacher))
        component = self.build_in(student.dtype)
        temperature = sample.temperature
        if isinstance(temperature, Tensor) and temperature.dim():
            temperature = temperature.unsqueeze(-1)
        with torch.no_grad():
            values = closed_form_of(component)(student, teacher, temperature)
        if not isinstance(values, Tensor) or values.shape != student.shape[:-1]:
            broken(f"the closed form must return one value for each of {len(student)} rows")
        return values, student

    def _compare(self, sample: Sample, tolerance: float, when: str) -> None:
        outcome, (gradient,) = self.gradients(sample)
        values, closed = self._closed(_in_a_row(sample))
        if not is_close(values.mean(), outcome.value, tolerance):
            broken(f"the closed form gives {number(values.mean()):.9g} but the loss {number(outcome.value):.9g} {when}")
        closed = closed.view(gradient.shape) / len(values)
        if not is_close(closed, gradient, tolerance):
            off = number((closed - gradient).abs().max())
            broken(f"the gradient of the closed form is off by up to {off:.3g} {when}")


def _in_a_row(sample: Sample) -> Sample:
    """Flatten the items, as a closed form requires."""
    flat = sample.both(lambda tensor: tensor.reshape(-1, tensor.shape[-1]))
    return flat.but(labels=sample.labels.reshape(-1))


def _moved(sample: Sample, own: float, theirs: float) -> Sample:
    """Return the sample in float32, with a number added to each side."""
    student = tuple((tensor + own).float() for tensor in sample.student)
    return sample.but(student=student, teacher=tuple((tensor + theirs).float() for tensor in sample.teacher))


def _ruled_out(tensors: tuple[Tensor, ...], rules: bool) -> tuple[Tensor, ...]:
    return tuple(tensor.index_fill(-1, torch.tensor([1]), -math.inf) for tensor in tensors) if rules else tensors
