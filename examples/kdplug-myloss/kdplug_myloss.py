"""KL divergence weighted by the teacher's confidence."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor


def confident_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: Tensor | float,
    mask: Tensor | None = None,
    *,
    power: Annotated[float, Field(ge=0, le=8)] = 1.0,
) -> Tensor:
    """Mean over items of ``c^power · KL(teacher || student) · temperature²`` in nats, ``c`` the teacher's top probability.

    ``power = 0`` is the usual distillation loss; the higher the power, the less items with an unsure teacher count. ``c`` is
    computed without temperature. A class with teacher logit ``-inf`` adds nothing.

    Shapes: logits ``[*items, classes]``, ``temperature`` a number or ``[*items]``, ``mask`` ``[*items]`` with ``True`` for
    items that count; returns a scalar, 0 if nothing counts. Raises ``ValueError`` if shapes differ.
    """
    if teacher_logits.shape != student_logits.shape or (mask is not None and mask.shape != student_logits.shape[:-1]):
        raise ValueError(f"shapes differ: {list(student_logits.shape)} and {list(teacher_logits.shape)}, or the mask's")
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    if mask is not None:
        student, teacher = (logits.masked_fill(~mask.bool().unsqueeze(-1), 0.0) for logits in (student, teacher))
    softness = torch.as_tensor(temperature, dtype=student.dtype, device=student.device).unsqueeze(-1)
    log_student, log_teacher = (torch.log_softmax(logits / softness, dim=-1) for logits in (student, teacher))
    target = log_teacher.exp()
    divergence = (target * (log_teacher - log_student).masked_fill(target == 0, 0.0)).sum(dim=-1)
    confidence = torch.softmax(teacher, dim=-1).amax(dim=-1)
    per_item = confidence**power * divergence * softness.squeeze(-1) ** 2
    counted = torch.ones_like(per_item) if mask is None else mask.to(per_item.dtype)
    return (per_item * counted).sum() / counted.sum().clamp(min=1.0)
