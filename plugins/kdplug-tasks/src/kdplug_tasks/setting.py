"""Base class and shared types of the settings of a task."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

LARGEST = 2**31 - 1
"""The largest count or seed, as for the core's keys."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
WholeNumber = Annotated[int, Field(ge=0, le=LARGEST)]


def at_home(path: str) -> str:
    """Return ``path`` with the home folder for a leading ``~``; that of an unknown user is left as it is."""
    return os.path.expanduser(path)  # noqa: PTH111  Path.expanduser raises for an unknown user


Place = Annotated[str, Field(min_length=1), AfterValidator(at_home)]
"""A file, a folder, or a name on the hub."""


class Settings(BaseModel):
    """Immutable; rejects unknown keys. The docstring below a key is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


def or_text(schema: dict[str, Any]) -> None:
    """Let the JSON Schema of a group also accept a string."""
    rest = {key: schema.pop(key) for key in list(schema) if key not in ("title", "description")}
    schema["anyOf"] = [{"type": "string"}, rest]


FINE_TUNING: dict[str, Any] = {
    "lr": 2e-4,
    "weight_decay": 0.01,
    "num_epochs": 2,
    "warmup": 0.1,
    "max_grad_norm": 1.0,
}
"""Defaults of ``training``."""

OF_CLASSES: dict[str, Any] = {"temperature": 4.0, "kd_loss_type": {"name": "kl", "t2": True}, "hard_label_weight": 1.0}
"""Defaults of ``distillation`` for exclusive classes. ``t2`` keeps the gradient independent of the temperature."""

OF_NUMBERS: dict[str, Any] = {"temperature": 1.0, "kd_loss_type": "mse", "hard_label_weight": 1.0}
"""Defaults of ``distillation`` for independent outputs, over which a softmax has no meaning."""
