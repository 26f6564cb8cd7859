"""Read SparseLogits: a teacher's probabilities of a few classes per item."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kdplug import OutputsError, SettingError, ShapeError, SparseLogits
from kdplug_logits.divergence import log_total, working_type
from kdplug_logits.shape import written


class Known(NamedTuple):
    """The teacher's log-probabilities at some classes, ``[*items, K]`` with ``ids``, and of all others combined."""

    ids: Tensor
    log_probs: Tensor
    rest: Tensor | None


def read_student(owner: str, student: Tensor, teacher: SparseLogits, temperature: Tensor | float) -> Tensor:
    """Return the student's softened log-probabilities over all classes, in float32 or wider.

    Raises: ``ShapeError`` if items or classes differ; ``SettingError`` for any temperature but the teacher's, and for one
    with gradient.
    """
    if not isinstance(student, Tensor) or student.shape != teacher.shape:
        own = written(student) if isinstance(student, Tensor) else type(student).__name__
        raise ShapeError(
            f"{owner}: student_logits {own} do not match the teacher's SparseLogits, which represent "
            f"logits of shape {list(teacher.shape)}"
        )
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise SettingError(
            f"{owner}: temperature has a gradient, but the teacher's SparseLogits were computed at temperature "
            f"{teacher.temperature:.7g} and cannot be converted to another. Set temperature: {teacher.temperature:.7g}, or use "
            "dense logits"
        )
    single = not isinstance(temperature, Tensor) or temperature.numel() == 1
    if not single or not math.isclose(float(temperature), teacher.temperature, rel_tol=1e-6):
        given = f"{float(temperature):.7g}" if single else "one value per item"
        raise SettingError(
            f"{owner}: needs the temperature of the teacher's SparseLogits, {teacher.temperature:.7g}, got {given}: they cannot be "
            f"converted to another. Set temperature: {teacher.temperature:.7g}, or use dense logits"
        )
    logits = student.to(working_type(student))
    return (logits if teacher.temperature == 1 else logits / teacher.temperature).log_softmax(dim=-1)


def likeliest(owner: str, teacher: SparseLogits, k: int, dtype: torch.dtype, *, with_rest: bool) -> Known:
    """Return at most ``k`` of the known classes, the most likely ones; the others are added to the rest.

    Raises: ``OutputsError`` for a sample, for a repeated class, and if the rest is needed but unknown.
    """
    if teacher.weights is not None or teacher.log_probs is None:
        raise OutputsError(f"{owner}: the teacher's SparseLogits are a sample, with weights. Use the loss 'sampled'")
    if with_rest and teacher.tail is None:
        raise OutputsError(
            f"{owner}: the teacher's SparseLogits have no tail. Set rest to zero or renorm_teacher, or return "
            "SparseLogits with a tail"
        )
    _check_distinct(owner, teacher.ids)
    log_probs = teacher.log_probs.to(dtype)
    rest = teacher.tail.to(dtype) if with_rest and teacher.tail is not None else None
    if k >= log_probs.shape[-1]:
        return Known(teacher.ids, log_probs, rest)
    found, places = log_probs.topk(k, dim=-1)
    if rest is not None:
        rest = torch.logaddexp(rest, log_total(log_probs.scatter(-1, places, -torch.inf)))
    return Known(teacher.ids.gather(-1, places), found, rest)


def _check_distinct(owner: str, ids: Tensor) -> None:
    """Raise ``OutputsError`` for a repeated class, on a CPU only: on other devices the check would wait."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    ordered = ids.sort(dim=-1).values
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        raise OutputsError(
            f"{owner}: the teacher's SparseLogits hold a class twice for one item. Return each class once"
        )
