"""In which precision a loss is computed, whatever precision its inputs come in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor


def working_type(*tensors: Tensor) -> torch.dtype:
    """The floating-point type that holds all inputs, 32 bits at least.

    Half precision cannot hold a count of elements above 65504, nor many sums.
    """
    if all(tensor.dtype is torch.float32 for tensor in tensors):
        return torch.float32
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def promoted(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in one working type, the teacher cut from the graph.

    The cast carries the student's gradient back to its own type.
    """
    dtype = working_type(student, teacher)
    if student.dtype is dtype and teacher.dtype is dtype:
        return student, teacher.detach()
    return student.to(dtype), teacher.detach().to(dtype)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which ``torch.autocast`` leaves operations on the device of ``tensor`` alone."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
