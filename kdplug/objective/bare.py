"""The commonest pair of tensors: one that a loss is given as it is."""

from __future__ import annotations

import torch
from torch import Tensor


def is_bare(student: Tensor, teacher: Tensor) -> bool:
    """Whether there is nothing to cast, to cut off or to switch off: float32 on a CPU outside autocast, the teacher in no graph.

    For small models the questions that a term asks one by one take as long as its loss.
    """
    return (
        student.dtype is torch.float32
        and teacher.dtype is torch.float32
        and student.is_cpu
        and not teacher.requires_grad
        and not teacher.is_inference()
        and not torch.is_autocast_enabled("cpu")
    )
