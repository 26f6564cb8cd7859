"""KL divergence over the teacher's likeliest classes."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdplug import LossSum, SparseLogits, closed_form
from kdplug_logits.closed_form_topk import topk_rows
from kdplug_logits.divergence import divergence, total
from kdplug_logits.kl import kl_terms, relative_entropy
from kdplug_logits.largest import largest
from kdplug_logits.mixture import log_total
from kdplug_logits.sparse import likeliest, read_student

Rest = Literal["tail", "zero", "renorm_teacher"]


def rest_of(log_probs: Tensor, ids: Tensor) -> Tensor:
    """The logarithm of what all classes but ``ids`` have together, ``[*items]``, from the classes themselves.

    One minus the sum over ``ids`` would have no digits left where these hold nearly everything.
    """
    return log_total(log_probs.scatter(-1, ids, -torch.inf))


def sparse_terms(own: Tensor, theirs: Tensor, own_rest: Tensor, their_rest: Tensor | None, rest: Rest) -> Tensor:
    """The terms, from log-probabilities at K classes, ``[*items, K]``, and of all others together, ``[*items]``."""
    if rest == "tail" and their_rest is not None:
        theirs = torch.cat([theirs, their_rest.unsqueeze(-1)], dim=-1)
        own = torch.cat([own, own_rest.unsqueeze(-1)], dim=-1)
    elif rest == "renorm_teacher":
        theirs = theirs.log_softmax(dim=-1)
    return relative_entropy(theirs, own)


def topk_terms(student: Tensor, teacher: Tensor, k: int, rest: Rest) -> Tensor:
    """The terms over the teacher's ``k`` likeliest classes, of log-probabilities ``[*items, classes]``."""
    if k >= teacher.shape[-1]:
        return kl_terms(student, teacher)
    theirs, ids = largest(teacher, k)
    own = student.gather(-1, ids)
    if rest != "tail":
        return sparse_terms(own, theirs, own, None, rest)
    return sparse_terms(own, theirs, rest_of(student, ids), rest_of(teacher, ids), rest)


def _from_sparse(
    student: Tensor, teacher: SparseLogits, temperature: Tensor | float, k: int, rest: Rest, *, t2: bool
) -> LossSum:
    log_probs = read_student("topk", student, teacher, temperature)
    ids, theirs, their_rest = likeliest("topk", teacher, k, log_probs.dtype, with_rest=rest == "tail")
    own = log_probs.gather(-1, ids)
    own_rest = own if their_rest is None else rest_of(log_probs, ids)
    terms = sparse_terms(own, theirs, own_rest, their_rest, rest)
    return LossSum(total(terms, teacher.temperature, t2=t2), student.shape[:-1].numel())


@closed_form(topk_rows)
def topk(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    temperature: Tensor | float = 1.0,
    teacher_sparse: SparseLogits | None = None,
    *,
    k: Annotated[int, Field(ge=1, le=2**31 - 1)] = 64,
    rest: Rest = "tail",
    t2: bool = True,
) -> LossSum:
    """KL divergence over the ``k`` classes that the softened teacher p finds likeliest, in nats, mean over items.

    ``T² Σ_k p log(p / q)``, q the student over all classes, and for what is left:

    * ``tail``: plus ``p_rest log(p_rest / q_rest)``, all other classes as one. A divergence: 0 where both agree on the k
      and on how much is left.
    * ``zero``: nothing. Not a divergence: it may fall below 0, and is least where the student gives the rest nothing.
    * ``renorm_teacher``: the teacher's k are made to sum to 1, the student's are not. Least where the student gives the rest
      nothing.

    A class that the teacher rules out (``-inf``) adds nothing; one that only the student rules out makes the value infinite.

    Where the teacher is a top-k cache, the classes are the likeliest ``k`` of those that it holds. It needs a tail for
    ``tail``, and the temperature has to be that of the cache.

    Settings: ``k``, how many classes; ``rest``, what becomes of all others; ``t2`` multiplies by the squared temperature.
    Relations: ``kl`` with ``k`` not below the number of classes, whatever ``rest``; with ``tail`` never above it.

    Shapes: logits ``[*items, classes]``; temperature a number, one element, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` where shapes differ; ``SettingError`` where the temperature is not positive or not that of the
    cache; ``OutputsError`` where the cache does not hold what is needed.
    Source: definition; the biases of the last two: Anshumann et al. 2025, arXiv:2503.16870.
    """
    if teacher_sparse is not None:
        return _from_sparse(student_logits, teacher_sparse, temperature, k, rest, t2=t2)
    terms = partial(topk_terms, k=k, rest=rest)
    return divergence("topk", student_logits, teacher_logits, temperature, terms, t2=t2)
