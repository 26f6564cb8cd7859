"""A few entries of every kind, so that these tests need no plugin, and outputs to try them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdplug import DistillationConfig, LossSum, Objective
from kdplug.host import registry

BATCH, LENGTH, CLASSES, WIDTH, WIDE = 3, 4, 5, 6, 8


def ce(student_logits, teacher_logits, temperature=1.0):
    temperature = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) and temperature.dim() else temperature
    target = (teacher_logits / temperature).softmax(-1)
    return -(target * (student_logits / temperature).log_softmax(-1)).sum(-1).mean()


def ce_sum(student_logits, teacher_logits) -> LossSum:
    return LossSum(ce(student_logits, teacher_logits) * student_logits[..., 0].numel(), student_logits[..., 0].numel())


def plain_mse(student_features, teacher_features):
    return (student_features - teacher_features).square().mean()


def masked_mse(student_features, teacher_features, mask=None) -> LossSum:
    error = student_features - teacher_features
    if mask is None:
        return LossSum(error.square().mean(-1).sum(), error[..., 0].numel())
    return LossSum(torch.where(mask.unsqueeze(-1), error, 0).square().mean(-1).sum(), mask.sum())


def pair_mse(student_features, teacher_features):
    return sum(plain_mse(*pair) for pair in zip(student_features, teacher_features, strict=True))


class Scaled(nn.Module):
    """A loss with a parameter, a buffer and a setting."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, student_features, teacher_features):
        self.calls += 1
        return self.scale * plain_mse(student_features, teacher_features)


def growth(progress):
    return progress


def linear(in_dim, out_dim):
    return nn.Linear(in_dim, out_dim)


LOSSES = (ce, ce_sum, plain_mse, masked_mse, pair_mse)


@pytest.fixture(autouse=True)
def entries(no_plugins: Any) -> None:
    """The entries above, under their own names."""
    for function in LOSSES:
        registry.losses.register(function.__name__)(function)
    registry.losses.register("scaled")(Scaled)
    registry.weight_schedulers.register("growth")(growth)
    registry.projections.register("linear")(linear)


@pytest.fixture
def build() -> Callable[..., Objective]:
    """An objective from the keys of a config."""
    return lambda **keys: Objective(DistillationConfig(**keys))


@pytest.fixture
def of() -> Callable[..., Objective]:
    """An objective from terms, and other keys of a config."""
    return lambda *terms, teachers=1, **keys: Objective(DistillationConfig(terms=list(terms), **keys), teachers)


@pytest.fixture
def offer() -> Callable[..., str]:
    """Registers a callable as an entry and returns its name."""

    def put(target: Callable[..., Any], kind: str = "losses", name: str = "offered") -> str:
        registry.REGISTRIES[kind].register(name)(target)
        return name

    return put


@pytest.fixture
def match() -> Callable[..., dict[str, Any]]:
    """One intermediate match as a config writes it."""
    return lambda **keys: {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "plain_mse", **keys}


@pytest.fixture
def matches_only() -> dict[str, Any]:
    """The keys of a config without a kd loss."""
    return {"kd_loss_weight": 0}


@pytest.fixture
def random() -> Callable[..., Tensor]:
    """Random float64 tensors, the same in every run."""
    generator = torch.Generator().manual_seed(7)
    return lambda *shape, **options: torch.randn(*shape, generator=generator, dtype=torch.float64, **options)


@pytest.fixture
def student(random: Callable[..., Tensor]) -> dict[str, Any]:
    """What a student's adaptor returns for ``[3, 4]`` tokens, with gradients to take."""
    return {
        "logits": random(BATCH, LENGTH, CLASSES, requires_grad=True),
        "hidden": [random(BATCH, LENGTH, WIDTH, requires_grad=True) for _ in range(3)],
        "attention": [random(BATCH, 2, LENGTH, LENGTH, requires_grad=True) for _ in range(2)],
        "losses": [random(1).sum().requires_grad_()],
    }


@pytest.fixture
def teacher(random: Callable[..., Tensor]) -> dict[str, Any]:
    """What a teacher's adaptor returns for the same batch; layers 0 to 2 as wide as the student's, layer 3 wider."""
    return {
        "logits": random(BATCH, LENGTH, CLASSES),
        "hidden": [*(random(BATCH, LENGTH, WIDTH) for _ in range(3)), random(BATCH, LENGTH, WIDE)],
        "attention": [random(BATCH, 2, LENGTH, LENGTH) for _ in range(2)],
    }


@pytest.fixture
def mask() -> Tensor:
    """A ragged mask ``[3, 4]``: 4, 2 and 1 tokens."""
    return torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
