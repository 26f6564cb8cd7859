"""Where gradient goes: never to the teacher, and always to every parameter that takes part in a term."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kdplug.objective.precision import full


def frozen(tensor: Tensor) -> Tensor:
    """A teacher tensor without gradient, fit to be saved for the student's backward pass."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return tensor.clone()  # autograd refuses to save tensors made under inference mode
    return tensor


def target(tensor: Tensor) -> Tensor:
    """A teacher tensor as a loss gets it: without gradient, in float32 at least."""
    if tensor.dtype is torch.float32 and not tensor.requires_grad and not tensor.is_inference():
        return tensor
    return full(frozen(tensor))


def connected_zero(tensors: Iterable[Tensor]) -> Tensor:
    """An exact 0 whose gradient is 0 for every tensor, whatever the tensors hold.

    It is the sum of no elements, since 0 times ``nan`` would be ``nan``.
    """
    parts = [tensor.reshape(-1).narrow(0, 0, 0).sum(dtype=_at_least_float32(tensor)) for tensor in tensors]
    return sum(parts[1:], start=parts[0]) if parts else torch.zeros(())


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
