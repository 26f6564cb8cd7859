"""A batch: what a model is called with, and what stands beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class Batch(Mapping[str, Tensor]):
    """The inputs of a model by name; ``targets``, by name too, are for adaptors and metrics and never reach a model.

    Models compute losses of their own where they are given labels, and most of them have no number for a batch without
    any. So the losses are the adaptors' business.
    """

    def __init__(self, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        self.inputs = dict(inputs)
        self.targets = dict(targets)

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        return Batch(inputs, {name: value.to(device, non_blocking=True) for name, value in self.targets.items()})
