"""Two heads over one vocabulary, and a loss on what they give, factored or multiplied out."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdplug import DistillationConfig, FactoredLogits, Objective

ITEMS, CLASSES, NARROW, WIDE = (3, 4), 11, 5, 7


def draw(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@dataclass
class Scene:
    """Factors of student and teacher. ``factored`` says which sides stay so; the other ones are multiplied out."""

    dtype: torch.dtype = torch.float64
    items: tuple[int, ...] = ITEMS
    classes: int = CLASSES
    head: dict = field(default_factory=dict)
    biased: bool = True
    student: tuple[Tensor, ...] = ()

    def __post_init__(self):
        self.student = self._factors(NARROW, 1)
        for tensor in self.student:
            tensor.requires_grad_()

    def _factors(self, width, seed):
        hidden = draw(*self.items, width, seed=seed, dtype=self.dtype)
        weight = draw(self.classes, width, seed=seed + 10, dtype=self.dtype)
        bias = (draw(self.classes, seed=seed + 20, dtype=self.dtype),) if self.biased else ()
        return (hidden, weight, *bias)

    def logits(self, side, *, factored):
        factors = self.student if side == "student" else self._factors(WIDE, 2)
        logits = FactoredLogits(*factors, **self.head)
        return logits if factored else logits.dense()

    def run(self, *, factored=("student", "teacher"), outputs=None, teacher=None, **config):
        """The term's value and the gradients of the student's factors."""
        for tensor in self.student:
            tensor.grad = None
        objective = Objective(DistillationConfig(**config))
        own = {"logits": self.logits("student", factored="student" in factored), **(outputs or {})}
        other = self.logits("teacher", factored="teacher" in factored) if teacher is None else teacher
        report = objective(own, other)
        report.total.backward()
        return report.total.detach(), [tensor.grad for tensor in self.student], report


def assert_same(found, expected, **tolerance):
    """Equal values and gradients."""
    tolerance = tolerance or {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, **tolerance)
