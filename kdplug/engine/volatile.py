"""What a forward pass changes besides gradients, put back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Volatile:
    """What a forward pass of ``model`` changes: torch's random numbers and the buffers (batch norm, memory banks)."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Forward passes inside the block leave no trace."""
    before = Volatile(model)
    try:
        yield
    finally:
        before.restore()
