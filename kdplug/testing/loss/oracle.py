"""The test that compares a loss with its author's formula."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdplug.errors import KdplugError
from kdplug.host.component import Component
from kdplug.testing.law import apart, broken, is_close, number, where
from kdplug.testing.loss.case import LossCase, gradients_of, read_outcome
from kdplug.testing.sample import Sample, SampleLayout, Shape, seeded


class OracleLaws(LossCase):
    """Compares values and gradients with a formula, where no size equals another one."""

    @where(lambda laws: laws.oracle is not None)
    def test_it_agrees_with_its_oracle(self) -> None:
        """Catches a formula that is nearly right: a softmax taken twice, a mean over classes, a sum that is divided by the
        batch size, the width or the number of layers, a factor of the temperature that is missing on one side. A class whose
        oracle requests buffers is compared again after a call in training, since a fresh memory may add nothing.
        """
        oracle = type(self).oracle
        assert oracle is not None
        for sample in self.samples():
            self._compare_with(oracle, sample)
            if self._reads_buffers(oracle):
                self._compare_with(oracle, sample, calls=1)
        if self.takes_sequences():
            return
        other = _resized(self.layout_of())
        try:
            sample = self.sample_of(other, 1)
            self.evaluate(sample)
        except (KdplugError, RuntimeError, ValueError, IndexError):
            return  # its settings fix the sizes
        self._compare_with(oracle, sample)

    def _reads_buffers(self, oracle: Callable[..., Any]) -> bool:
        target: Any = self.build().target
        buffers = target.named_buffers() if isinstance(target, nn.Module) else ()
        return any(name.replace(".", "_") in inspect.signature(oracle).parameters for name, _ in buffers)

    def _called(self, sample: Sample, calls: int) -> Component:
        """Build the loss for a sample, and call it as often with another one."""
        component = self.build_in(torch.float64, layout=sample.layout)
        for seed in range(1, 1 + calls):
            self.evaluate(self.sample(seed, masked=sample.mask is not None), component)
        return component

    def _compare_with(self, oracle: Callable[..., Any], sample: Sample, calls: int = 0) -> None:
        component = self._called(sample, calls)
        asked = self._values_for(oracle, sample, component)
        with seeded(1):
            expected = torch.as_tensor(oracle(*asked), dtype=torch.float64).detach()
        leaves = tuple(tensor.clone().requires_grad_() for tensor in sample.student)
        with seeded(1):
            outcome = read_outcome(component(**sample.but(student=leaves).values()))
        shapes = f"{list(sample.layout.student)}{' after a call in training' if calls else ''}"
        if not is_close(outcome.value.detach(), expected):
            broken(
                f"is {number(outcome.value):.9g} for the student's {shapes}, but its oracle gives {number(expected):.9g}: "
                f"{_times(number(outcome.value), number(expected))}. Compare divisors and powers of the "
                "temperature"
            )
        wanted = self._gradients_of_oracle(oracle, sample, calls)
        if wanted is None:
            return
        found = gradients_of(outcome.value, leaves)
        if not all(map(is_close, found, wanted)):
            broken(
                f"has the value of its oracle for the student's {shapes}, but its gradient is off by "
                f"{apart(found, wanted):.3g}. Do not detach a factor, neither in the loss nor in the oracle"
            )

    def _gradients_of_oracle(self, oracle: Callable[..., Any], sample: Sample, calls: int) -> list[Tensor] | None:
        """Return the gradients of the oracle, or ``None`` if it leaves torch."""
        component = self._called(sample, calls)
        leaves = tuple(tensor.clone().requires_grad_() for tensor in sample.student)
        try:
            with seeded(1), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = oracle(*self._values_for(oracle, sample.but(student=leaves), component))
        except RuntimeError:
            return None  # numpy takes no tensor with gradient
        return gradients_of(expected, leaves) if isinstance(expected, Tensor) and expected.requires_grad else None

    def _values_for(self, oracle: Callable[..., Any], sample: Sample, component: Component) -> list[Any]:
        """Return what the oracle requests: inputs of a loss, and parameters and buffers by name, ``.`` as ``_``."""
        target = component.target
        state = target.state_dict() if isinstance(target, nn.Module) else {}
        values = {name.replace(".", "_"): tensor.clone() for name, tensor in state.items()} | sample.values()
        names = list(inspect.signature(oracle).parameters)
        missing = [name for name in names if name not in values]
        if missing:
            broken(
                f"its oracle requests names that are not inputs of a loss, parameters or buffers: {', '.join(missing)}. Available: "
                f"{', '.join(sorted(values))}"
            )
        return [values[name] for name in names]


def _times(found: float, expected: float) -> str:
    """Say how much larger the first number is, or by how much it differs if their ratio rounds to 1 or there is none."""
    ratio = f"{found / (expected or 1):.4g}"
    return f"a difference of {found - expected:.3g}" if ratio == "1" or not expected else f"{ratio} times as much"


def _resized(layout: SampleLayout) -> SampleLayout:
    """Return a layout of other sizes: one example less, one token more, and wider by an amount that differs by axis."""

    def other(shape: Shape) -> Shape:
        sizes = []
        for axis, size in enumerate(shape):
            if axis == 0:
                sizes.append(size - 1 if size > 2 else size + 1)
            else:
                sizes.append(size + 1 if axis in layout.token_axes else size + 1 + axis)
        return tuple(sizes)

    student, teacher = (tuple(map(other, side)) for side in (layout.student_shapes, layout.teacher_shapes))
    logits = None if layout.logits is None else other(layout.logits)
    return SampleLayout(
        layout.word, student, teacher, layout.token_axes, layout.listed, layout.draws, logits, layout.integers
    )
