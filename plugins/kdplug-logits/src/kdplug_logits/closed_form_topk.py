"""Closed form of the divergence over the teacher's likeliest classes."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug import SparseLogits
from kdplug_logits.closed_form import closed, entropy_of
from kdplug_logits.closed_form_kl import kl_rows
from kdplug_logits.mixture import log_total
from kdplug_logits.sparse import Known, likeliest


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
        known = likeliest("topk", teacher, k, student.dtype, with_rest=rest == "tail")

        def sparse(own: Tensor, _: Tensor) -> Tensor:
            return _from_known(own, known, rest)

        return closed(sparse, None, student, student.new_empty(0), temperature, t2=t2)
    if k >= teacher.shape[-1]:
        return kl_rows(student, teacher, temperature, t2=t2)

    def formula(own: Tensor, theirs: Tensor) -> Tensor:
        return _topk(own, theirs, k, rest)

    return closed(formula, None, student, teacher, temperature, t2=t2)


def _topk(student: Tensor, teacher: Tensor, k: int, rest: str) -> Tensor:
    logits, ids = teacher.topk(k, dim=-1)
    total = teacher.logsumexp(dim=-1, keepdim=True)
    their_rest = None
    if rest == "tail":
        their_rest = log_total(teacher.scatter_(-1, ids, -torch.inf)) - total.squeeze(-1)
    return _from_known(student, Known(ids, logits - total, their_rest), rest)


def _from_known(student: Tensor, known_classes: Known, rest: str) -> Tensor:
    ids, theirs, their_rest = known_classes
    log_probs = student.log_softmax(dim=-1)
    own = log_probs.gather(-1, ids)
    if rest == "renorm_teacher":
        theirs = theirs.log_softmax(dim=-1)
    known = theirs.exp()
    mass = known.sum(dim=-1, keepdim=True)
    values = entropy_of(known, theirs, own)
    if their_rest is not None:
        left, their_rest = log_probs.scatter(-1, ids, -torch.inf), their_rest.unsqueeze(-1)
        other = their_rest.exp()
        values = values + entropy_of(other, their_rest, log_total(left).unsqueeze(-1))
        share = left.softmax(dim=-1).nan_to_num_(nan=0.0)  # nan where no class is left
        torch.mul(log_probs.exp_(), mass + other, out=student)
        student.addcmul_(share, other, value=-1)
    else:
        torch.mul(log_probs.exp_(), mass, out=student)
    student.scatter_add_(-1, ids, -known)
    return values.squeeze(-1)
