"""Check gradient flow and precision: the teacher gets no gradient, and each parameter of a term gets one."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_HALF = frozenset({torch.float16, torch.bfloat16})


def full(tensor: Tensor) -> Tensor:
    """Cast float16 and bfloat16 to float32; return other tensors unchanged."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def is_half(tensor: Tensor) -> bool:
    return tensor.dtype in _HALF


def is_autocast_on(device_type: str) -> bool:
    """Return whether the surrounding code runs under autocast for this device type."""
    try:
        return torch.is_autocast_enabled(device_type)
    except RuntimeError:  # a device without autocast, such as "meta"
        return False


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that disables autocast on ``device``."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def frozen(tensor: Tensor) -> Tensor:
    """Detach a teacher tensor so that it can be saved for the student's backward pass."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return tensor.clone()  # autograd cannot save tensors made under inference mode
    return tensor


def target(tensor: Tensor) -> Tensor:
    """Return a teacher tensor in the form that a loss receives: detached, in float32 or wider."""
    if tensor.dtype is torch.float32 and not tensor.requires_grad and not tensor.is_inference():
        return tensor
    return full(frozen(tensor))


def connected_zero(tensors: Iterable[Tensor]) -> Tensor:
    """Return an exact 0 whose gradient is 0 for every tensor, whatever the tensors hold.

    It is an empty sum, since 0 times ``nan`` would be ``nan``.
    """
    parts = [tensor.reshape(-1).narrow(0, 0, 0).sum(dtype=_at_least_float32(tensor)) for tensor in tensors]
    return sum(parts[1:], start=parts[0]) if parts else torch.zeros(())


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
