"""In which precision a loss is computed, whatever precision its inputs come in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor

_SINGLE = {torch.float32}


def working_type(*tensors: Tensor) -> torch.dtype:
    """The floating-point type that holds all inputs, 32 bits at least.

    Half precision cannot hold a count of elements above 65504, nor many sums.
    """
    if {tensor.dtype for tensor in tensors} == _SINGLE:
        return torch.float32
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in ``dtype``; asking first is several times cheaper than a cast that changes nothing."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def cut(teacher: Tensor) -> Tensor:
    """The teacher's side out of the graph, where it is in one."""
    return teacher.detach() if teacher.requires_grad else teacher


def promoted(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in one working type, the teacher cut from the graph.

    The cast carries the student's gradient back to its own type.
    """
    dtype = working_type(student, teacher)
    return in_type(student, dtype), in_type(cut(teacher), dtype)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which ``torch.autocast`` leaves operations on the device of ``tensor`` alone."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
