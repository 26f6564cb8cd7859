"""In which precision losses run: float32 at least, whatever autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_HALF = frozenset({torch.float16, torch.bfloat16})


def full(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it is float16 or bfloat16, otherwise the tensor itself."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def is_half(tensor: Tensor) -> bool:
    return tensor.dtype in _HALF


def is_autocast_on(device_type: str) -> bool:
    """Whether the surrounding code runs under autocast for this kind of device."""
    try:
        return torch.is_autocast_enabled(device_type)
    except RuntimeError:  # a device without autocast, such as "meta"
        return False


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast leaves operations on ``device`` alone."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()
