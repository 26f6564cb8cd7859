"""Combine the logits of several teachers into one teacher's logits. Teachers of weight 0 are not read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from kdplug import OutputsError, SettingError
from kdplug_presets.numerics import read_temperature, without_autocast, working_type
from kdplug_presets.shape import LOGITS, require_same


def _some_count(weights: list[float]) -> list[float]:
    if not any(weights):
        raise ValueError("must contain a weight above 0")
    return weights


Weights = Annotated[
    list[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1), AfterValidator(_some_count)
]


def _read(owner: str, teacher_logits_list: Sequence[Tensor]) -> list[Tensor]:
    """Return the teachers' logits in one working type, each checked against the first."""
    if not teacher_logits_list:
        raise OutputsError(f"{owner}: there are no teachers to combine. Pass the logits of at least one teacher")
    first = teacher_logits_list[0]
    for place, logits in enumerate(teacher_logits_list[1:], 1):
        require_same(owner, first, logits, ("teacher_logits_list[0]", f"teacher_logits_list[{place}]"), LOGITS)
    dtype = working_type(*teacher_logits_list)
    return [logits.detach().to(dtype) for logits in teacher_logits_list]


def _check_classes(owner: str, logits: Tensor) -> None:
    """Raise ``OutputsError`` for a single class, whose softmax is always 1."""
    if logits.shape[-1] == 1:
        raise OutputsError(
            f"{owner}: needs at least two classes, since it compares the teachers' probabilities. Use mean_logits or weighted"
        )


def mean_logits(teacher_logits_list: Sequence[Tensor]) -> Tensor:
    """Return the mean of the logits, whose softmax is the normalized geometric mean of the teachers' distributions.

    A teacher with large logits dominates. A class that any teacher rules out (``-inf``) is ruled out.

    Shapes: logits ``[*items, classes]`` each; the result has that shape.
    Raises: ``ShapeError`` if shapes differ.
    Source: TextBrewer ``MultiTeacherDistiller``, arXiv:2002.12620; Hinton et al. 2015, arXiv:1503.02531.
    """
    teachers = _read("mean_logits", teacher_logits_list)
    total = teachers[0]
    for logits in teachers[1:]:
        total = total + logits
    return total / len(teachers)


@torch.no_grad()
def mean_probs(teacher_logits_list: Sequence[Tensor], temperature: Tensor | float = 1.0) -> Tensor:
    """Return logits whose softmax at the temperature is the mean of the teachers' softened distributions.

    That is ``temperature · log(mean softmax(logits / temperature))``: divided by the same temperature and softmaxed they
    give the arithmetic mean. Each teacher has equal influence, regardless of the size of its logits; a class is ruled
    out (``-inf``) where all teachers rule it out.

    Shapes: logits ``[*items, classes]`` each; temperature a number, a one-element tensor, ``[*items]`` or ``[*items,
    1]``; the result has the shape of the logits.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive; ``OutputsError`` for
    logits with one class.
    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    teachers = _read("mean_probs", teacher_logits_list)
    _check_classes("mean_probs", teachers[0])
    temperature = read_temperature("mean_probs", temperature, teachers[0])
    with without_autocast(teachers[0]):
        logs = torch.stack([(logits / temperature).log_softmax(dim=-1) for logits in teachers])
        return (logs.logsumexp(dim=0) - math.log(len(teachers))) * temperature


def weighted(teacher_logits_list: Sequence[Tensor], *, weights: Weights) -> Tensor:
    """Return the weighted mean of the logits. The weights are divided by their sum.

    A teacher of weight 0 is not read, so its logits may hold any values.

    Settings: ``weights``, one per teacher, in the order of the teachers.

    Shapes: logits ``[*items, classes]`` each; the result has that shape.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if there are not as many weights as teachers.
    Source: definition.
    """
    teachers = _read("weighted", teacher_logits_list)
    if len(weights) != len(teachers):
        raise SettingError(
            f"must contain one weight for each of the {len(teachers)} teachers, got {len(weights)}", field="weights"
        )
    total = sum(weights)
    parts = [logits * (weight / total) for logits, weight in zip(teachers, weights, strict=True) if weight]
    return sum(parts[1:], start=parts[0])


@torch.no_grad()
def entropy_gate(
    teacher_logits_list: Sequence[Tensor],
    *,
    gate_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
) -> Tensor:
    """Return a mean of the logits, weighted per item: more confident teachers get more weight.

    The weights of an item are ``softmax(-entropy / gate_temperature)`` over the teachers, with the entropy of each
    teacher's ``softmax(logits)`` in nats. A high ``gate_temperature`` approaches ``mean_logits``, a low one selects the
    most confident teacher.

    Settings: ``gate_temperature``, the higher, the more equal the teachers' weights.

    Shapes: logits ``[*items, classes]`` each; the result has that shape.
    Raises: ``ShapeError`` if shapes differ.
    Source: definition; weighting teachers by entropy: Kwon et al. 2020, doi:10.1109/ICASSP40776.2020.9054698.
    """
    teachers = torch.stack(_read("entropy_gate", teacher_logits_list))
    with without_autocast(teachers):
        entropy = torch.special.entr(teachers.softmax(dim=-1)).sum(dim=-1, keepdim=True)
        weight = (-entropy / gate_temperature).softmax(dim=0)
        return torch.where(weight > 0, weight * teachers, 0.0).sum(dim=0)


@torch.no_grad()
def select(
    teacher_logits_list: Sequence[Tensor],
    labels: Tensor | None = None,
    *,
    index: Annotated[int, Field(ge=0)] | None = None,
) -> Tensor:
    """Return the logits of one teacher: always the same one, or per item the one most confident in the label.

    Without ``index`` that is the teacher whose ``softmax(logits)`` is highest at the label or, for an item without a
    label (negative), at any class. Ties go to the first teacher. Teachers that are not selected do not affect the
    result, even if their logits are not finite.

    Settings: ``index``, the teacher for every item, from 0; without it, the label decides.

    Shapes: logits ``[*items, classes]`` each, labels ``[*items]``; the result has the shape of the logits.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if there is no such teacher; ``OutputsError`` if there are
    no labels to decide by, or only one class.
    Source: definition; weighting teachers by their confidence in the label: Zhang et al. 2022, arXiv:2201.00007.
    """
    teachers = _read("select", teacher_logits_list)
    if index is not None:
        if index >= len(teachers):
            raise SettingError(f"must be less than {len(teachers)}, the number of teachers, got {index}", field="index")
        return teachers[index]
    if labels is None:
        raise OutputsError(
            "select: needs labels, but the student returned none. Return labels from the student's adaptor, or set index"
        )
    _check_classes("select", teachers[0])
    stacked = torch.stack(teachers)
    with without_autocast(stacked):
        sure = stacked.softmax(dim=-1)
        at_label = sure.gather(-1, labels.long().clamp(min=0).expand(sure.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        chosen = torch.where(labels < 0, sure.amax(dim=-1), at_label).argmax(dim=0)
    return stacked.gather(0, chosen[None, ..., None].expand(1, *stacked.shape[1:])).squeeze(0)
