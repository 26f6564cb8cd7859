"""What the laws of a teacher combiner feed it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdplug.testing.law import Laws
from kdplug.testing.sample import draw

TEMPERATURE = 2.0


def softened(logits: Tensor) -> Tensor:
    """The distribution at the temperature that the laws configure."""
    return (logits / TEMPERATURE).softmax(-1)


@dataclass(frozen=True, slots=True)
class TeacherSample:
    """The inputs of one call: logits ``[*items, classes]`` of each teacher and of the student, labels ``[*items]``."""

    teachers: tuple[Tensor, ...]
    student: Tensor
    labels: Tensor
    temperature: Tensor | float = TEMPERATURE

    def values(self) -> dict[str, Any]:
        """Every input by name."""
        return {
            "teacher_logits_list": self.teachers,
            "student_logits": self.student,
            "labels": self.labels,
            "temperature": self.temperature,
            "progress": 0.5,
            "step": 5,
            "total_steps": 10,
        }

    def tensors(self) -> tuple[Tensor, ...]:
        """The teachers' logits, the student's, the labels."""
        return (*self.teachers, self.student, self.labels)

    def but(self, **changes: Any) -> TeacherSample:
        """The sample with other fields."""
        return replace(self, **changes)

    def each(self, change: Callable[[Tensor], Tensor]) -> TeacherSample:
        """The sample with ``change`` made to all logits."""
        return self.but(teachers=tuple(map(change, self.teachers)), student=change(self.student))

    def reordered(self, order: Tensor) -> TeacherSample:
        """The items of the first axis in the order ``order``."""
        return self.each(lambda logits: logits[order]).but(labels=self.labels[order])

    def with_classes(self, order: Tensor) -> TeacherSample:
        """The classes in the order ``order``, and labels that follow them."""
        return self.each(lambda logits: logits[..., order]).but(labels=order.argsort()[self.labels])

    def with_spoilt_item(self) -> TeacherSample:
        """The last item of the first axis with other logits, far from what they were, for every teacher but the first.

        Which of the teachers is the surest over the whole batch changes by that.
        """

        def spoilt(logits: Tensor) -> Tensor:
            found = logits.clone()
            found[-1] = 1e3 * found[-1].flip(-1)
            return found

        return self.but(teachers=(self.teachers[0], *map(spoilt, self.teachers[1:])), student=spoilt(self.student))

    def ruled_out(self, ruling: int, value: float) -> TeacherSample:
        """The sample in which the first ``ruling`` teachers give ``value`` to class 1."""

        def without(logits: Tensor) -> Tensor:
            found = logits.clone()
            found[..., 1] = value
            return found

        return self.but(teachers=(*map(without, self.teachers[:ruling]), *self.teachers[ruling:]))


class CombinerCase(Laws):
    """A teacher combiner, and the inputs that it is tried with."""

    teachers: ClassVar[int] = 3
    """How many teachers it is tried with."""

    classes: ClassVar[int] = 5
    """How many classes the logits have."""

    leading: ClassVar[tuple[tuple[int, ...], ...]] = ((4,), (3, 2))
    """What may stand before the classes in the shape of the logits: items, or a batch of tokens."""

    @classmethod
    def kind_of(cls) -> str:
        return "teacher_combiners"

    def sample(self, leading: tuple[int, ...] | None = None) -> TeacherSample:
        """Float64 logits that depend on the arguments alone."""
        shape = (*(leading or self.leading[0]), self.classes)
        labels = torch.arange(math.prod(shape[:-1])) % self.classes
        teachers = tuple(draw(shape, 10 + place) for place in range(self.teachers))
        return TeacherSample(teachers, draw(shape, 1), labels.reshape(shape[:-1]))

    def combine(self, sample: TeacherSample) -> Tensor:
        """What the combiner makes of the teachers."""
        found: Tensor = self.build()(**sample.values())
        return found

    @staticmethod
    def tolerance(found: Tensor) -> float:
        """How far rounding may go: a combiner may compute in float32."""
        return 1e-9 if found.dtype is torch.float64 else 1e-4
