"""A set of plugins of this suite's own: the names of the presets, with toys behind them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Annotated

import pytest
from pydantic import Field

from kdplug.host.active import isolated
from kdplug.host.metadata import Distribution, EntryPoint


def kd_loss(student_logits, teacher_logits, temperature=1.0, *, alpha: float = 1.0, beta: float = 8.0):
    """A kd loss with two settings."""


def match_loss(student_features, teacher_features, mask=None):
    """A match loss without settings."""


def linear(in_dim, out_dim, *, bias: bool = True):
    """A projection with one setting."""


def linear_decay(progress, *, power: Annotated[float, Field(gt=0)] = 1.0):
    """A weight scheduler with one setting."""


def flsw(
    student_logits,
    teacher_logits,
    temperature,
    *,
    beta: float,
    gamma: Annotated[float, Field(ge=0)],
    eps: float = 1e-4,
):
    """A temperature scheduler with two required settings."""


class Digits:
    """A task."""


_PRESETS = {
    "losses": {
        "ce": "kd_loss",
        "blend": "kd_loss",
        "hidden_mse": "match_loss",
        "fsp": "match_loss",
        "broken": "missing",
    },
    "projections": {"linear": "linear", "relu": "linear"},
    "weight_schedulers": {"linear_decay": "linear_decay", "linear_growth": "linear_decay"},
    "temperature_schedulers": {"flsw": "flsw"},
}
_TASKS = {"tasks": {"digits": "Digits"}}


def _distribution(name: str, offered: dict[str, dict[str, str]]) -> Distribution:
    points = [
        EntryPoint(f"kdplug.{plural}", entry, f"toy_presets:{target}")
        for plural, entries in offered.items()
        for entry, target in entries.items()
    ]
    return Distribution(name, "0.1.0", tuple(points))


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """Registries that hold the toys and nothing else."""
    module = ModuleType("toy_presets")
    for target in (kd_loss, match_loss, linear, linear_decay, flsw, Digits):
        setattr(module, target.__name__, target)
    monkeypatch.setitem(sys.modules, "toy_presets", module)
    with isolated([_distribution("kdplug-presets", _PRESETS), _distribution("kdplug-tasks", _TASKS)]) as host:
        yield host


@pytest.fixture
def match():
    """The smallest match, to be extended."""
    return {"layer_T": 10, "layer_S": 3, "feature": "hidden", "loss": "hidden_mse"}


@pytest.fixture
def recipe():
    """The smallest recipe, to be extended."""
    return {"task": "digits", "distillation": {}, "training": {"num_epochs": 2}}
