"""Mixup with a consistent teacher: both models see the same mixed examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta

import kdplug


class Mixup(kdplug.WrappedTask):
    """Mix each example of a distillation batch with another one; teacher and student get the same mixture.

    Batches are mappings; floating-point tensors are mixed, with a separate share for each example. Labels become -100, since
    the teacher's output on the mixture is the only target.

    Settings: ``base``, the task; ``alpha``, of the Beta distribution from which the shares are drawn; 1 is uniform.

    Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent", arXiv:2106.05237,
    section 3.1.
    """

    prepares_batches = True

    def __init__(self, *, base: kdplug.BaseTask, alpha: float = 1.0) -> None:
        super().__init__(base=base)
        self.alpha = alpha

    def prepare_batch(self, batch: dict[str, Any], student: nn.Module) -> dict[str, Any]:  # noqa: ARG002
        """Return the mixtures of a batch."""
        count = len(next(value for value in batch.values() if isinstance(value, Tensor)))
        shares, order = Beta(self.alpha, self.alpha).sample((count,)), torch.randperm(count)
        mixed = {key: self._mixed(value, shares, order) for key, value in batch.items()}
        return {**mixed, "labels": torch.full_like(batch["labels"], -100)}

    def _mixed(self, value: Any, shares: Tensor, order: Tensor) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        shares = shares.to(value).reshape(-1, *[1] * (value.dim() - 1))
        return shares * value + (1 - shares) * value[order.to(value.device)]
