"""``with distiller:`` sets the modes of the models, and gives them back at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from torch import nn

__all__ = ["DistillationContext"]


class DistillationContext:
    """Teachers in eval mode and the student in train mode inside the block; outside of it modes are what they were."""

    def __init__(self) -> None:
        self.model_S: Any = None
        self.model_T: Any = None
        self._modes: list[tuple[nn.Module, bool]] = []

    def __enter__(self) -> Self:
        self._modes = [
            (module, module.training)
            for model in (*_each(self.model_T), *_each(self.model_S))
            for module in model.modules()
        ]
        for model in _each(self.model_T):
            model.eval()
        for model in _each(self.model_S):
            model.train()
        return self

    def __exit__(self, *error: object) -> None:
        for module, training in self._modes:
            module.training = training


def _each(models: Any) -> Iterator[nn.Module]:
    if isinstance(models, (list, tuple, nn.ModuleList)):
        yield from models
    elif isinstance(models, (dict, nn.ModuleDict)):
        yield from models.values()
    else:
        yield models
