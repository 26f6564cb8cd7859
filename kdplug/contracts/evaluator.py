"""Interface of an evaluator, which measures a trained model after a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch.nn import Module

    from kdplug.contracts.task import Task


@runtime_checkable
class Evaluator(Protocol):
    """Measures a trained model. Any class with ``__call__`` is one; its ``__init__`` takes keyword-only settings."""

    def __call__(self, model: Module, task: Task) -> Mapping[str, float]:
        """Return figures by name. ``model`` is in eval mode, gradients are disabled, and its weights must not change."""
        ...
