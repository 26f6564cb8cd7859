"""Half precision as ``fp16=True`` asks for it, by torch instead of apex."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from kdplug.integrations.textbrewer.configurations import TrainingConfig


class Precision:
    """Forward passes under autocast and losses scaled, where the config asks for half precision; else nothing."""

    def __init__(self, config: TrainingConfig) -> None:
        self.enabled = bool(config.fp16) and config.fp16_opt_level != "O0"
        self._device = torch.device(config.device).type
        self._scaler = torch.amp.GradScaler(self._device, enabled=self.enabled)

    def forward(self) -> AbstractContextManager[Any]:
        """The context of a forward pass and its losses."""
        return torch.autocast(self._device, dtype=torch.float16) if self.enabled else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """The backward pass."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients back to their size, before they are clipped."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """One step of the optimizer; false where it was left out, since gradients had overflowed."""
        scale = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        return self._scaler.get_scale() >= scale
