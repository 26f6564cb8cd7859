"""Every entry with inputs to try it on. Hypothesis draws sizes and a seed; tensors come from the seed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from kdplug import LossSum

LOSSES: dict[str, Callable[..., Any]] = {
    point.name: point.load() for point in distribution("kdplug-logits").entry_points if point.group == "kdplug.losses"
}
LABELLED = ("dkd", "nkd", "wsld")
UNTEMPERED = ("regression", "ranking")
TEMPERED = tuple(name for name in LOSSES if name not in UNTEMPERED)
ZERO_AT_EQUALITY = (
    "kl",
    "reverse_kl",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "tvd",
    "adaptive_kl",
    "alpha_beta",
    "dkd",
    "logit_std",
    "topk",
    "uld",
    "regression",
)
"""``dist`` is so only where nothing is constant."""


@dataclass
class Case:
    """The inputs of one call."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    temperature: Any = 1.0

    def loss(self, name: str, **settings: Any) -> Any:
        """The ``LossSum`` of the loss ``name``; of a scalar, with count 1."""
        asked = inspect.signature(LOSSES[name]).parameters
        given = {"temperature": self.temperature, "labels": self.labels}
        inputs = {key: value for key, value in given.items() if key in asked}
        found = LOSSES[name](self.student, self.teacher, **inputs, **settings)
        return found if isinstance(found, LossSum) else LossSum(found, 1)

    def gradient(self, name: str, **settings: Any) -> Tensor:
        """That of the mean with respect to the student's logits."""
        self.student = self.student.detach().requires_grad_()
        return torch.autograd.grad(self.loss(name, **settings).value, self.student)[0]


def case(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Case:
    """Random logits, each item with a label."""
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (6, 5)
    student, teacher = (
        (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype) for _ in range(2)
    )
    return Case(student, teacher, torch.randint(shape[-1], shape[:-1], generator=generator))


def rule_out(logits: Tensor, seed: int, share: float = 0.4) -> Tensor:
    """``logits`` with ``-inf`` at random classes, never at all of an item."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.rand(logits.shape, generator=generator) < share
    kept = torch.randint(logits.shape[-1], logits.shape[:-1], generator=generator)
    return logits.masked_fill(out.scatter(-1, kept.unsqueeze(-1), False), -math.inf)


seeds = st.integers(0, 2**31 - 1)


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float64, *, least_classes: int = 3) -> Case:
    """Inputs of random sizes, sizes of logits and temperatures: one number, or one for each item.

    Some losses refuse two classes (test_two_classes.py).
    """
    shape = draw(st.lists(st.integers(1, 4), min_size=0, max_size=2))
    found = case(
        *shape,
        draw(st.integers(least_classes, 9)),
        seed=draw(seeds),
        scale=draw(st.sampled_from([0.1, 1.0, 10.0])),
        dtype=dtype,
    )
    found.temperature = draw(st.sampled_from([0.5, 1.0, 3.0]))
    if draw(st.booleans()) and shape:
        found.temperature = torch.linspace(0.5, 3.0, math.prod(shape), dtype=torch.float64).view(shape)
    return found


def finite(*tensors: Tensor) -> bool:
    """Whether no entry is nan or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
