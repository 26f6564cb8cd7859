"""Cross-entropy of one distribution under another."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy_per_item(student: Tensor, teacher: Tensor) -> Tensor:
    """``−Σ p log q`` of log-probabilities ``[*items, classes]``, in nats, ``[*items]``; a class of p = 0 adds nothing."""
    probs = teacher.exp()
    return -(probs * torch.where(probs > 0, student, 0.0)).sum(dim=-1)
