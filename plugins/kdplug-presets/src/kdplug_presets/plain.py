"""The commonest pair of tensors: one that needs no check, no cast and no blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug_presets import numerics


def is_plain(student: object, teacher: object) -> bool:
    """Whether both are small float32 tensors of one shape with elements, run eagerly on a CPU, the teacher out of the graph.

    What a loss asks about its inputs one by one takes as long as such a loss itself. A loss may answer this pair first, with
    the value that its long way gives.
    """
    return (
        isinstance(student, Tensor)
        and isinstance(teacher, Tensor)
        and student.dtype is torch.float32
        and teacher.dtype is torch.float32
        and student.shape == teacher.shape
        and 0 < student.numel() <= numerics.SMALL
        and not teacher.requires_grad
        and student.is_cpu
        and teacher.is_cpu
        and not torch.compiler.is_compiling()
    )
