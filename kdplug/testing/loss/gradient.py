"""Tests of the gradient of a loss."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from kdplug.contracts.loss import INTEGER_INPUTS
from kdplug.testing.law import advise, are_finite, broken, unless, where
from kdplug.testing.loss.case import LossCase
from kdplug.testing.sample import Sample

_DIFFERENTIATE = (
    "Remove detach(), .data, in-place operations and casts to float32 on the student's tensors, or correct the backward "
    "method"
)


class GradientLaws(LossCase):
    """The student gets the right gradient, and the teacher gets none."""

    @advise("Read each student tensor that is requested, without detach()")
    def test_gradient_reaches_the_student(self) -> None:
        """Catches a detached student, swapped arguments, a layer that is never read."""
        for sample in self.samples():
            _, gradients = self.gradients(sample)
            places: list[str | None] = [
                f" layer {layer}" if len(gradients) > 1 else "" for layer in range(len(gradients))
            ]
            if sample.layout.logits is not None:
                places[-1] = "'s logits" if self.asks_for("student_logits") else None
            for place, gradient in zip(places, gradients, strict=True):
                if place is None:
                    continue
                if not are_finite([gradient]):
                    broken(f"the gradient of the student{place} is not finite")
                if not bool(gradient.any()):
                    broken(f"the gradient does not reach the student{place}: it is 0 everywhere")

    @unless(INTEGER_INPUTS)
    def test_gradient_never_reaches_the_teacher(self) -> None:
        """Catches a teacher that is trained towards the student unless it is frozen."""
        for sample in self.samples():
            student = tuple(tensor.clone().requires_grad_() for tensor in sample.student)
            teacher = tuple(tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in sample.teacher)
            value = self.evaluate(sample.but(student=student, teacher=teacher)).value
            leaves = [tensor for tensor in teacher if tensor.requires_grad]
            found = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad and leaves else ()
            if any(gradient is not None and bool(gradient.any()) for gradient in found):
                broken("the gradient reaches the teacher: detach the teacher's inputs (teacher_logits.detach())")

    def test_gradient_agrees_with_finite_differences(self) -> None:
        """Catches a wrong hand-written backward pass, a detached factor, an in-place operation that autograd missed."""
        for sample in self.samples():
            leaves = tuple(tensor.clone().requires_grad_() for tensor in sample.student)
            value = partial(self._value_of_student, sample)
            value(*leaves)
            try:
                torch.autograd.gradcheck(value, leaves, atol=1e-5, rtol=1e-4, fast_mode=True)
            except (GradcheckError, RuntimeError) as error:
                broken(f"the gradient does not match the value: {error}. {_DIFFERENTIATE}")

    def _value_of_student(self, sample: Sample, *student: Tensor) -> Tensor:
        return self.evaluate(sample.but(student=student)).value

    @advise(
        "Apply log_softmax to the logits once, and weight the student's log-probabilities by the teacher's probabilities"
    )
    @where(lambda laws: laws.corrects_confident_mistakes)
    def test_a_confident_mistake_is_corrected(self) -> None:
        """Catches a softmax taken twice, which leaves a confidently wrong student without gradient."""
        small, large = (self._gradient_at_gap(gap) for gap in (3.0, 30.0))
        if large < 0.5 * small:
            broken(
                f"the gradient falls from {small:.3g} to {large:.3g} as the student becomes more confident of a mistake. "
                "Is a softmax taken twice, or are the arguments swapped?"
            )

    def _gradient_at_gap(self, gap: float) -> float:
        sample = self.sample(masked=False).but(temperature=1.0)
        teacher, student = (torch.zeros_like(sample.student[0]) for _ in range(2))
        teacher[..., 0] = 10.0
        student[..., 1] = gap
        _, gradients = self.gradients(sample.but(student=(student,), teacher=(teacher,)))
        return float(gradients[0].norm())

    @advise("Apply log_softmax to the logits once on each side, or do not declare reaches_teacher")
    @where(lambda laws: laws.reaches_teacher)
    def test_training_on_it_reaches_the_teacher(self) -> None:
        """Catches a loss whose minimum is elsewhere: a softmax taken twice on one side, positions shifted by one."""
        sample = self.sample(masked=False).but(temperature=1.0)
        student = tuple(tensor.clone().requires_grad_() for tensor in sample.student)
        optimizer = torch.optim.LBFGS(
            list(student), max_iter=200, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )
        component = self.build_in(torch.float64)

        def step() -> Tensor:
            optimizer.zero_grad()
            value = self.evaluate(sample.but(student=student), component).value
            torch.autograd.backward(value, inputs=student)
            return value

        optimizer.step(step)  # type: ignore[no-untyped-call]
        distances = [
            float((one.detach().softmax(-1) - two.softmax(-1)).abs().sum(-1).max()) / 2
            for one, two in zip(student, sample.teacher, strict=True)
        ]
        if max(distances) > 0.01:
            broken(
                f"after training on this loss, the total variation distance to the teacher is still {max(distances):.2f}"
            )
