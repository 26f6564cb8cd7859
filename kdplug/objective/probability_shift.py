"""A teacher that is always right: its largest logit moves to the true class."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug.errors import OutputsError


def shift(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Swap, item by item, the teacher's largest logit with the one at the label. The input stays as it is.

    An item with a negative label is left alone.

    Shapes: logits ``[*items, classes]``, labels ``[*items]`` to ``[*items, classes]``.
    Raises: ``OutputsError`` for a label that is no class (on a CPU; an accelerator's own assertion stops the run there).
    Source: TextBrewer's ``probability_shift``; Wen et al. 2019, arXiv:1911.07471.
    """
    _check_labels(labels, teacher_logits.shape[-1])
    labels = labels.long().unsqueeze(-1)
    largest, top = teacher_logits.max(dim=-1, keepdim=True)
    label = torch.where(labels < 0, top, labels)  # swapped with itself, an item stays what it is
    at_label = teacher_logits.gather(-1, label)
    return teacher_logits.scatter(-1, top, at_label).scatter_(-1, label, largest)


def _check_labels(labels: Tensor, classes: int) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise OutputsError(f"must hold integer class indices, got {labels.dtype}", field="student.labels")
    if labels.device.type == "cpu" and labels.numel() and (largest := int(labels.max())) >= classes:
        raise OutputsError(f"label {largest} does not exist: there are {classes} classes", field="student.labels")
