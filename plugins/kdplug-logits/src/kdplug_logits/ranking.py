"""Pairwise ranking of candidates in the teacher's order."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdplug import LossSum
from kdplug_logits.divergence import floored, promoted
from kdplug_logits.shape import require_logits


def teacher_ordered(teacher: Tensor) -> Tensor:
    """Return the pairs of candidates i, j of which the teacher scores i above j and rules out neither (``-inf``).

    Shapes: ``[*items, candidates]`` to bool ``[*items, i, j]``.
    """
    return (teacher.unsqueeze(-1) > teacher.unsqueeze(-2)) & (teacher > -torch.inf).unsqueeze(-2)


def ranking(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    form: Literal["logistic", "hinge"] = "logistic",
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0,
) -> LossSum:
    """Pairwise ranking loss over all pairs of candidates that the teacher orders, mean over pairs.

    For a pair whose first candidate the teacher scores higher, with ``d`` the student's first score minus its second:
    ``log(1 + e^−d)`` (``logistic``, in nats) or ``max(0, margin − d)`` (``hinge``). Only the teacher's order matters,
    not the difference; a tie is not a pair. A candidate that the teacher rules out (``-inf``), such as padding of a
    list, is in no pair.

    Every pair of the batch has the same weight, so a list of n candidates has a weight of about n². All pairs are in
    memory at once: ``[*items, candidates, candidates]``.

    Settings: ``form``, ``logistic`` or ``hinge``; ``margin`` of the hinge, which the logistic form ignores.
    Relations: none to the divergences: any student with the teacher's order and large enough differences is at the
    minimum.

    Shapes: scores ``[*items, candidates]``.
    Raises: ``ShapeError`` if shapes differ.
    Source: Burges et al. 2005 (RankNet), doi:10.1145/1102351.1102363, with certain targets; Joachims 2002,
    doi:10.1145/775047.775067, for the hinge; the teacher in place of human judgements as in Tang and Wang 2018,
    arXiv:1809.07428.
    """
    require_logits("ranking", student_logits, teacher_logits)
    student, teacher = promoted(student_logits, teacher_logits)
    student, ordered = floored(student), teacher_ordered(teacher)
    lead = student.unsqueeze(-1) - student.unsqueeze(-2)
    values = -logsigmoid(lead) if form == "logistic" else (margin - lead).clamp(min=0.0)
    return LossSum(torch.where(ordered, values, 0.0).sum(), ordered.sum())
