"""What divergences between softened distributions have in common: how logits are read, and how items are added up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdplug import LossSum
from kdplug_logits.precision import promoted
from kdplug_logits.shape import require_logits
from kdplug_logits.tempering import over_temperature, read_temperature, times_squared

Terms = Callable[[Tensor, Tensor], Tensor]
"""Log-probabilities of student and teacher, ``[*items, classes]`` each, to what is summed over the last axis."""


def tempered(
    owner: str, student_logits: Tensor, teacher_logits: Tensor | None, temperature: Tensor | float
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Both sides over the temperature in float32 at least, the teacher cut from the graph, and the temperature as read.

    Raises: ``ShapeError`` where shapes differ; ``SettingError`` where the temperature is not positive.
    """
    teacher_logits = require_logits(owner, student_logits, teacher_logits)
    temperature = read_temperature(owner, temperature, student_logits)
    student, teacher = promoted(student_logits, teacher_logits)
    return over_temperature(student, temperature), over_temperature(teacher, temperature), temperature


def within_support(student: Tensor, teacher: Tensor) -> Tensor:
    """Student logits with ``-inf`` at the classes that the teacher rules out.

    For divergences that are infinite wherever the student gives such a class any probability. Where that would leave the
    student no class at all its logits are 0: the divergence is infinite then, and has a gradient of 0. A student that rules
    every class out itself is no distribution, and stays as it is.
    """
    kept = student.masked_fill(teacher == -torch.inf, -torch.inf)
    some, shared = (side.amax(dim=-1, keepdim=True) > -torch.inf for side in (student, kept))
    return kept.masked_fill(some & ~shared, 0.0)


def divergence(
    owner: str,
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    temperature: Tensor | float,
    terms: Terms,
    *,
    t2: bool,
    supported: bool = False,
) -> LossSum:
    """The sum over items and classes of ``terms`` of the softened log-probabilities, and the number of items.

    ``t2`` multiplies by the squared temperature; ``supported`` keeps the student to the classes that the teacher allows.
    """
    student, teacher, temperature = tempered(owner, student_logits, teacher_logits, temperature)
    if supported:
        student = within_support(student, teacher)
    found = terms(student.log_softmax(dim=-1), teacher.log_softmax(dim=-1))
    return LossSum(total(found, temperature, t2=t2), student.shape[:-1].numel())


def total(terms: Tensor, temperature: Tensor | float, *, t2: bool) -> Tensor:
    """The sum of ``terms`` ``[*items, classes]``, with ``t2`` times the squared temperature.

    One sum where the temperature is one number: on small logits starting a second one costs more than carrying it out.
    """
    if not t2:
        return terms.sum()
    if isinstance(temperature, Tensor) and temperature.dim():
        return times_squared(terms.sum(dim=-1), temperature).sum()
    return times_squared(terms.sum(), temperature)
