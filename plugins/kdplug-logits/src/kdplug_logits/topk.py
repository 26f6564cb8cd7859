"""KL divergence over the teacher's most likely classes."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdplug import LossSum, SparseLogits, closed_form
from kdplug_logits.closed_form import closed, entropy_of, kl_rows, mean_of, scaled, softmax_of
from kdplug_logits.divergence import divergence, log_total, total
from kdplug_logits.kl import kl_terms, relative_entropy
from kdplug_logits.sparse import likeliest, read_student

_GROUP = 32
"""Number of neighbours that share one maximum."""
_WORTH = 8
"""With fewer groups per requested number than this, a full search is as fast."""


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of each row in falling order, and their indices: as ``topk``, in half the time on a CPU.

    They must all be in the k groups with the largest maxima. Ties may be resolved differently.

    Shapes: ``[*items, classes]`` to twice ``[*items, k]``.
    """
    classes = values.shape[-1]
    groups = classes // _GROUP
    if values.device.type != "cpu" or groups < _WORTH * k:
        found, ids = values.topk(k, dim=-1)
        return found, ids
    whole = groups * _GROUP
    maxima = values[..., :whole].reshape(*values.shape[:-1], groups, _GROUP).amax(dim=-1)
    best = maxima.topk(k, dim=-1, sorted=False).indices
    candidates = (best.unsqueeze(-1) * _GROUP + torch.arange(_GROUP)).flatten(-2)
    if whole < classes:
        rest = torch.arange(whole, classes).expand(*values.shape[:-1], -1)
        candidates = torch.cat([candidates, rest], dim=-1)
    found, places = values.gather(-1, candidates).topk(k, dim=-1)
    return found, candidates.gather(-1, places)


_LEAST = 1e-25
"""A rest below this has lost precision to numbers that float32 cannot represent."""


def topk_rows(
    student: Tensor,
    teacher: Tensor | SparseLogits,
    temperature: Tensor | float,
    *,
    k: int = 64,
    rest: str = "tail",
    t2: bool = True,
) -> Tensor:
    """Evaluate the closed form of ``topk``:

    ``Σ p · q − p`` at the k classes; the others share ``−p_rest`` by the student's rest.
    """
    if isinstance(teacher, SparseLogits):
        return _finite_from_sparse(student, teacher, k, rest, t2=t2)
    if k >= teacher.shape[-1]:
        return kl_rows(student, teacher, temperature, t2=t2)

    def formula(own: Tensor, theirs: Tensor) -> Tensor:
        logits, ids = largest(theirs, k)
        all_sum = theirs.logsumexp(dim=-1, keepdim=True)
        left = log_total(theirs.scatter_(-1, ids, -torch.inf)).unsqueeze(-1) - all_sum if rest == "tail" else None
        return _topk(own, ids, logits - all_sum, left, rest)

    finite = partial(_with_tail, k=k) if rest == "tail" else formula
    return closed(finite, formula, student, teacher, temperature, t2=t2)


def _with_tail(student: Tensor, teacher: Tensor, k: int) -> Tensor | None:
    """Compute both rests as sums over the other classes; return ``None`` if one of them is too small for float32."""
    logits, ids = largest(teacher, k)
    (own, own_sums), (theirs, _) = softmax_of(student), softmax_of(teacher)
    known, own_known = theirs.gather(-1, ids), own.gather(-1, ids)
    ratio = logits - logits[..., :1] + known[..., :1].log() - student.gather(-1, ids) + own_sums
    other, left = (probs.scatter_(-1, ids, 0.0).sum(dim=-1, keepdim=True) for probs in (theirs, own))
    values = mean_of(known, ratio) + other * (other.log() - left.log())
    if not values.isfinite().all() or torch.minimum(other, left).min() < _LEAST:
        return None
    mass = known.sum(dim=-1, keepdim=True) + other
    torch.mul(own, mass - other / left, out=student)
    student.scatter_(-1, ids, own_known * mass - known)
    return values.squeeze(-1)


def _finite_from_sparse(student: Tensor, teacher: SparseLogits, k: int, rest: str, *, t2: bool) -> Tensor:
    ids, theirs, left = likeliest("topk", teacher, k, student.dtype, with_rest=rest == "tail")
    temperature = teacher.temperature
    values = _topk(student.div_(temperature), ids, theirs, None if left is None else left.unsqueeze(-1), rest)
    return scaled(values, student, temperature, t2=t2)


def _topk(student: Tensor, ids: Tensor, theirs: Tensor, their_rest: Tensor | None, rest: str) -> Tensor:
    """Return values and write the gradient over the tempered ``student``; ``their_rest`` is ``[n, 1]``, given for a tail."""
    log_probs = student.log_softmax(dim=-1)
    if rest == "renorm_teacher":
        theirs = theirs.log_softmax(dim=-1)
    known = theirs.exp()
    mass = known.sum(dim=-1, keepdim=True)
    values = entropy_of(known, theirs, log_probs.gather(-1, ids))
    if their_rest is None:
        torch.mul(log_probs.exp_(), mass, out=student)
    else:
        left, other = log_probs.scatter(-1, ids, -torch.inf), their_rest.exp()
        values = values + entropy_of(other, their_rest, log_total(left).unsqueeze(-1))
        torch.mul(log_probs.exp_(), mass + other, out=student)
        share = left.softmax(dim=-1).nan_to_num_(nan=0.0)  # nan if no class is left
        student.addcmul_(share, other, value=-1)
    student.scatter_add_(-1, ids, -known)
    return values.squeeze(-1)


Rest = Literal["tail", "zero", "renorm_teacher"]


def rest_of(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Return the logarithm of the total of all classes but ``ids``, ``[*items]``, summed over the classes themselves.

    One minus the sum over ``ids`` would lose all precision if these hold nearly everything.
    """
    return log_total(log_probs.scatter(-1, ids, -torch.inf))


def sparse_terms(own: Tensor, theirs: Tensor, own_rest: Tensor, their_rest: Tensor | None, rest: Rest) -> Tensor:
    """Return the terms from log-probabilities of K classes, ``[*items, K]``, and of the rest combined, ``[*items]``."""
    if rest == "tail" and their_rest is not None:
        theirs = torch.cat([theirs, their_rest.unsqueeze(-1)], dim=-1)
        own = torch.cat([own, own_rest.unsqueeze(-1)], dim=-1)
    elif rest == "renorm_teacher":
        theirs = theirs.log_softmax(dim=-1)
    return relative_entropy(theirs, own)


def topk_terms(student: Tensor, teacher: Tensor, k: int, rest: Rest) -> Tensor:
    """Return the terms over the teacher's ``k`` most likely classes, of log-probabilities ``[*items, classes]``."""
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
    """KL divergence over the ``k`` most likely classes of the softened teacher p, in nats, mean over items.

    ``T² Σ_k p log(p / q)``, with q the student over all classes. ``rest`` sets the treatment of the other classes:

    * ``tail`` adds ``p_rest log(p_rest / q_rest)``, with all other classes combined. This is a divergence: 0 if both
      sides agree on the k classes and on the rest.
    * ``zero`` adds nothing. This is not a divergence: it may be negative, and is smallest if the student gives the rest
      no probability.
    * ``renorm_teacher`` normalizes the teacher's k probabilities to sum to 1, but not the student's. The loss is
      smallest if the student gives the rest no probability.

    A class that the teacher rules out (``-inf``) adds nothing; one that only the student rules out makes the value
    infinite.

    If the teacher is a top-k cache, its most likely ``k`` classes are used. ``tail`` needs a cache with a tail, and the
    temperature must be that of the cache.

    Settings: ``k``, the number of classes; ``rest``, the treatment of all other classes; ``t2`` multiplies by the
    squared temperature.
    Relations: ``kl`` with ``k`` at least the number of classes, for any ``rest``; with ``tail`` it is never above ``kl``.

    Shapes: logits ``[*items, classes]``; temperature a number, a one-element tensor, ``[*items]`` or ``[*items, 1]``.
    Raises: ``ShapeError`` if shapes differ; ``SettingError`` if the temperature is not positive or not that of the
    cache; ``OutputsError`` if the cache lacks required parts.
    Source: definition; the biases of the last two: Anshumann et al. 2025, arXiv:2503.16870.
    """
    if teacher_sparse is not None:
        return _from_sparse(student_logits, teacher_sparse, temperature, k, rest, t2=t2)
    terms = partial(topk_terms, k=k, rest=rest)
    return divergence("topk", student_logits, teacher_logits, temperature, terms, t2=t2)
