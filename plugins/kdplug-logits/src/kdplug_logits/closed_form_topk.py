"""Closed form of the divergence over the teacher's likeliest classes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kdplug import SparseLogits
from kdplug_logits.closed_form import closed, entropy_of, mean_of, scaled, softmax_of
from kdplug_logits.closed_form_kl import kl_rows
from kdplug_logits.largest import largest
from kdplug_logits.mixture import log_total
from kdplug_logits.sparse import likeliest

_LEAST = 1e-25
"""A rest below this has lost digits to numbers that float32 cannot hold."""


def topk_rows(
    student: Tensor,
    teacher: Tensor | SparseLogits,
    temperature: Tensor | float,
    *,
    k: int = 64,
    rest: str = "tail",
    t2: bool = True,
) -> Tensor:
    """Closed form of ``topk``: ``Σ p · q − p`` at the k classes; the others share ``−p_rest`` as they share the student's rest."""
    if isinstance(teacher, SparseLogits):
        return _from_sparse(student, teacher, k, rest, t2=t2)
    if k >= teacher.shape[-1]:
        return kl_rows(student, teacher, temperature, t2=t2)

    def formula(own: Tensor, theirs: Tensor) -> Tensor:
        logits, ids = largest(theirs, k)
        all_sum = theirs.logsumexp(dim=-1, keepdim=True)
        left = log_total(theirs.scatter_(-1, ids, -torch.inf)).unsqueeze(-1) - all_sum if rest == "tail" else None
        return _topk(own, ids, logits - all_sum, left, rest)

    quick = partial(_with_tail, k=k) if rest == "tail" else formula
    return closed(quick, formula, student, teacher, temperature, t2=t2)


def _with_tail(student: Tensor, teacher: Tensor, k: int) -> Tensor | None:
    """Both rests are sums over the other classes themselves; where one is too small to keep its digits, ``None``."""
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


def _from_sparse(student: Tensor, teacher: SparseLogits, k: int, rest: str, *, t2: bool) -> Tensor:
    ids, theirs, left = likeliest("topk", teacher, k, student.dtype, with_rest=rest == "tail")
    temperature = teacher.temperature
    values = _topk(student.div_(temperature), ids, theirs, None if left is None else left.unsqueeze(-1), rest)
    return scaled(values, student, temperature, t2=t2)


def _topk(student: Tensor, ids: Tensor, theirs: Tensor, their_rest: Tensor | None, rest: str) -> Tensor:
    """Values, and the gradient over the tempered ``student``; ``their_rest`` is ``[n, 1]`` and there for a tail."""
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
        share = left.softmax(dim=-1).nan_to_num_(nan=0.0)  # nan where no class is left
        student.addcmul_(share, other, value=-1)
    student.scatter_add_(-1, ids, -known)
    return values.squeeze(-1)
