"""Tests of a loss on logits: extreme logits, and temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdplug.contracts.loss import COMPARES_ITEMS, OWN_PARAMETERS, RANDOM, TAKES_NUMBERS, TAKES_SCORES, declares
from kdplug.errors import KdplugError
from kdplug.testing.law import advise, are_finite, broken, is_close, number, unless, where
from kdplug.testing.loss.case import LossCase
from kdplug.testing.sample import Sample, draw


def on_logits(laws: type[LossCase]) -> bool:
    return laws.on_logits()


def _tempered(laws: type[LossCase]) -> bool:
    return laws.on_logits() and laws.asks_for("temperature")


def _takes_numbers(laws: type[LossCase]) -> bool:
    return laws.on_logits() and declares(laws._found.load(), TAKES_NUMBERS)  # noqa: SLF001  own attribute


class LogitLaws(LossCase):
    """Laws on extreme logits and on the effect of temperature."""

    @advise("Use log_softmax instead of log(softmax) and exp, and -inf instead of a large negative number")
    @where(on_logits)
    def test_logits_of_ten_thousand_stay_finite(self) -> None:
        """Catches ``log(softmax(x))``, ``exp(x)``, a class masked with -1000 instead of ``-inf``."""
        sample = self.sample(masked=False).rescaled(lambda tensor: (tensor * 1e4).float()).but(temperature=1.0)
        outcome, gradients = self.gradients(sample)
        exact = self.evaluate(sample.rescaled(torch.Tensor.double)).value
        if not are_finite([outcome.value]):
            broken(f"logits of 1e4 give the value {number(outcome.value)}")
        if not are_finite(gradients):
            broken("logits of 1e4 give a non-finite gradient")
        if not is_close(outcome.value, exact, 1e-3):
            broken(f"logits of 1e4 give {number(outcome.value):.6g} in float32 but {number(exact):.6g} in float64")

    @advise(
        "Set the terms of classes with probability 0 to 0, as in torch.where(p > 0, p * (log_p - log_q), 0.0). "
        "If -inf is not a valid score, state takes_scores = True"
    )
    @unless(TAKES_SCORES)
    @where(on_logits)
    def test_a_class_that_the_teacher_rules_out_stays_finite(self) -> None:
        """Catches ``0 * log(0)``. A teacher rules classes out with ``-inf``: padded vocabularies, constrained decoding."""
        sample = self.sample(masked=False)
        ruled_out = tuple(tensor.clone() for tensor in sample.teacher)
        for tensor in ruled_out:
            tensor[..., 1] = -math.inf
        outcome, gradients = self.gradients(sample.but(teacher=ruled_out))
        if not are_finite([outcome.value]):
            broken(f"a class with teacher logit -inf gives the value {number(outcome.value)}")
        if not are_finite(gradients):
            broken("a class with teacher logit -inf gives a non-finite gradient")

    @where(_takes_numbers)
    def test_a_single_number_gets_a_gradient(self) -> None:
        """Catches ``takes_numbers`` on a loss of probabilities. The softmax of one class is always 1."""
        sample = self.sample(masked=False)
        numbers = sample.both(lambda tensor: tensor[..., :1]).but(labels=torch.zeros_like(sample.labels))
        _, gradients = self.gradients(numbers)
        if not are_finite(gradients) or not any(bool(gradient.any()) for gradient in gradients):
            broken("declares takes_numbers, but logits with one class get no gradient. Remove the declaration")

    @advise("Sum over classes instead of taking a mean, or do not declare ignores_impossible_classes")
    @unless(OWN_PARAMETERS)
    @where(lambda laws: laws.ignores_impossible_classes)
    def test_impossible_classes_change_nothing(self) -> None:
        """Catches a mean over classes, which makes the loss depend on the vocabulary size."""
        for sample in self.samples():
            more = sample.both(lambda tensor: torch.nn.functional.pad(tensor, (0, 3), value=-1e4))
            before, after = self.evaluate(sample).value, self.evaluate(more).value
            if not is_close(after, before):
                broken(
                    f"three more classes of probability 0 changed the value from {number(before):.6g} to "
                    f"{number(after):.6g}"
                )

    @advise("Divide the logits of both sides by the temperature, or do not request temperature")
    @where(_tempered)
    def test_temperature_is_used(self) -> None:
        """Catches an input that is requested and ignored."""
        sample = self.sample(masked=False)
        cold, warm = (self.evaluate(sample.but(temperature=degree)).value for degree in (1.0, 4.0))
        if is_close(cold, warm):
            broken(f"requests temperature, but gives {number(cold):.6g} at both temperatures 1 and 4")

    @advise(
        "Divide the logits of both sides by the temperature, and multiply the loss of each item by the squared temperature if "
        "t2 is declared"
    )
    @where(lambda laws: _tempered(laws) and laws.t2 is not None)
    def test_temperature_scales_it_as_declared(self) -> None:
        """Catches no temperature squared (gradients fade as it rises), or a temperature applied to one side only."""
        sample = self.sample(masked=False)
        tempered = sample.both(lambda tensor: tensor * 3).but(temperature=3.0)
        at_one, at_three = (self.evaluate(one).value for one in (sample.but(temperature=1.0), tempered))
        expected = 9 if self.t2 else 1
        if not is_close(at_three, expected * at_one):
            broken(
                f"for the same softened distributions, temperature 3 should give {expected} times the value at 1 "
                f"(t2 = {self.t2}), got {number(at_three / at_one):.3g} times"
            )

    @advise("Divide the logits by temperature.unsqueeze(-1) if the temperature is a tensor")
    @where(_tempered)
    def test_one_temperature_per_item_is_taken(self) -> None:
        """Catches a scheduled temperature broadcast along the wrong axis."""
        for sample in (_square(self.sample(masked=False)), _flat(self.sample(masked=False))):
            items = sample.student[0].shape[:-1]
            same = self.evaluate(sample.but(temperature=torch.full(items, 3.0, dtype=torch.float64))).value
            if not is_close(same, self.evaluate(sample.but(temperature=3.0)).value):
                broken(
                    f"a temperature of 3 for each of the items {list(items)} gives a different value from one "
                    "temperature of 3"
                )

    @advise("Divide each item's logits by its own temperature, temperature.unsqueeze(-1)")
    @unless(COMPARES_ITEMS, RANDOM)
    @where(lambda laws: _tempered(laws) and laws.returns_sum())
    def test_each_item_gets_its_own_temperature(self) -> None:
        """Catches temperatures per item averaged, or used for another item."""
        sample = _flat(self.sample(masked=False))
        items = sample.student[0].shape[0]
        temperature = torch.linspace(1.0, 4.0, items, dtype=torch.float64)
        whole = self.evaluate(sample.but(temperature=temperature))
        singles = [
            self.evaluate(sample.rows([item]).but(temperature=float(temperature[item]))) for item in range(items)
        ]
        expected = torch.stack([one.total for one in singles]).sum() / sum(number(one.count) for one in singles)
        if not is_close(whole.value, expected):
            broken(
                f"is {number(whole.value):.6g} with a temperature per item, but {number(expected):.6g} if each item is "
                "computed alone"
            )

    @where(_tempered)
    def test_a_trained_temperature_gets_its_gradient(self) -> None:
        """Catches a temperature that is detached, on one side or in its square, or that a written backward leaves out.

        A scheduler with parameters would be trained on a part of the gradient, or never. An error that names temperature
        is accepted. For random draws the gradient only has to be there: that of the mean is not that of one draw.
        """
        sample = _flat(self.sample(masked=False))
        items = sample.student[0].shape[:-1]
        self.evaluate(sample)
        for what, at, direction in (
            ("one temperature", torch.tensor(2.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)),
            ("a temperature per item", torch.linspace(1.5, 3.0, items.numel(), dtype=torch.float64), draw(items, 3)),
        ):
            try:
                found = self._slope(sample, at, direction)
            except Exception as error:
                if isinstance(error, (KdplugError, ValueError, NotImplementedError)) and "temperature" in str(error):
                    return
                broken(f"{what} with gradient raises {type(error).__name__}: {error}. {_WITH_GRADIENT}")
            expected = self._difference(sample, at, direction)
            if found is None:
                broken(f"{what}: its gradient is lost, but finite differences give {expected:.6g}. {_WITH_GRADIENT}")
            if self.asks_for("draw_seed"):
                continue
            if not math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-6):
                broken(
                    f"{what}: its gradient is {found:.6g}, but finite differences give {expected:.6g}. {_WITH_GRADIENT}"
                )

    def _slope(self, sample: Sample, at: Tensor, direction: Tensor) -> float | None:
        """Return the derivative along ``direction`` by autograd, ``None`` if the temperature gets no gradient."""
        temperature = at.clone().requires_grad_()
        student = tuple(tensor.clone().requires_grad_() for tensor in sample.student)
        value = self.evaluate(sample.but(student=student, temperature=temperature)).value
        if not value.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(value, (temperature,), allow_unused=True)
        return None if gradient is None else float((gradient * direction).sum())

    def _difference(self, sample: Sample, at: Tensor, direction: Tensor) -> float:
        """Return the derivative along ``direction`` by a central difference."""
        above, below = (self.evaluate(sample.but(temperature=at + step * direction)).value for step in (_STEP, -_STEP))
        return number(above - below) / (2 * _STEP)


_STEP = 1e-5

_WITH_GRADIENT = (
    "Detach the teacher's logits before they are divided by the temperature, not after, and never detach the "
    "temperature. If temperature.requires_grad, compute the plain formula instead of using a torch.autograd.Function that "
    "returns no gradient for it, or raise kdplug.SettingError with a message that names temperature"
)


def _flat(sample: Sample) -> Sample:
    """Flatten the items."""
    flat = sample.both(lambda tensor: tensor.reshape(-1, tensor.shape[-1]))
    return flat.but(labels=sample.labels.reshape(-1))


def _square(sample: Sample) -> Sample:
    """Return a sample with as many tokens as examples, for which a wrong axis raises no error."""
    size = min(sample.layout.mask)
    return sample.rows(list(range(size))).tokens(list(range(size))) if len(sample.layout.mask) > 1 else sample
