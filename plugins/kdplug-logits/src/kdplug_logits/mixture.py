"""Mixtures of two distributions, in logarithms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdplug_logits.precision import floor_of


def floored(log_probs: Tensor) -> Tensor:
    """``log_probs`` with a large finite number for ``-inf``, which gets no gradient.

    ``logaddexp`` of two infinities has none that is finite.
    """
    return log_probs.clamp(min=floor_of(log_probs.dtype))


def log_mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    """``log(share · e^first + (1 − share) · e^second)`` of log-probabilities that are ``floored``; share within (0, 1)."""
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def log_total(log_probs: Tensor) -> Tensor:
    """``logsumexp`` over the last axis: ``-inf``, with a gradient of 0, where every class has probability 0."""
    total = floored(log_probs).logsumexp(dim=-1)
    return total.masked_fill(total < floor_of(total.dtype) / 2, -torch.inf)
