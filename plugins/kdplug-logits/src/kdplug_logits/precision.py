"""In which precision a loss is computed, whatever precision its inputs come in."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def working_type(*tensors: Tensor) -> torch.dtype:
    """The floating-point type that holds all inputs, 32 bits at least."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def promoted(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in one working type, the teacher cut from the graph.

    The cast carries the student's gradient back to its own type. No loss here multiplies matrices, the one thing that
    autocast would do in half precision again.
    """
    if student.dtype is teacher.dtype is torch.float32:
        return student, teacher.detach()
    dtype = working_type(student, teacher)
    return student.to(dtype), teacher.detach().to(dtype)


def floor_of(dtype: torch.dtype) -> float:
    """A finite stand-in for the logarithm of 0: its exponential is 0, and sums of a few of them are finite."""
    return torch.finfo(dtype).min / 8
