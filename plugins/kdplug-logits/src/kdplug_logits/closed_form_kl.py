"""Closed forms of the KL divergences, in either direction."""

from __future__ import annotations

import torch
from torch import Tensor

from kdplug_logits.closed_form import closed, entropy_of, mean_of, softmax_of
from kdplug_logits.divergence import within_support


def kl_rows(student: Tensor, teacher: Tensor, temperature: Tensor | float, *, t2: bool = True) -> Tensor:
    """Closed form of ``kl``: the gradient is ``T (q − p)``, with ``t2``."""
    return closed(_kl, _kl_carefully, student, teacher, temperature, t2=t2)


def reverse_kl_rows(student: Tensor, teacher: Tensor, temperature: Tensor | float, *, t2: bool = True) -> Tensor:
    """Closed form of ``reverse_kl``: the gradient is ``T q (log(q / p) − KL(q‖p))``, with ``t2``."""
    return closed(_reverse_kl, _reverse_kl_carefully, student, teacher, temperature, t2=t2)


def _kl(student: Tensor, teacher: Tensor) -> Tensor | None:
    (own, own_sum), (theirs, their_sum) = softmax_of(student), softmax_of(teacher)
    values = mean_of(theirs, teacher - student) - their_sum + own_sum
    if not values.isfinite().all():
        return None
    torch.sub(own, theirs, out=student)
    return values.squeeze(-1)


def _kl_carefully(student: Tensor, teacher: Tensor) -> Tensor:
    own, theirs = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    probs = theirs.exp()
    values = entropy_of(probs, theirs, own)
    torch.sub(own.exp_(), probs, out=student)
    return values.squeeze(-1)


def _reverse_kl(student: Tensor, teacher: Tensor) -> Tensor | None:
    own, own_sum = softmax_of(student)
    gap = student - teacher
    mean = mean_of(own, gap)
    values = mean - own_sum + teacher.exp().sum(dim=-1, keepdim=True).log_()
    if not values.isfinite().all():
        return None
    torch.mul(own, gap.sub_(mean), out=student)
    return values.squeeze(-1)


def _reverse_kl_carefully(student: Tensor, teacher: Tensor) -> Tensor:
    own, theirs = within_support(student, teacher).log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    probs = own.exp()
    ratio = torch.where(probs > 0, own - theirs, 0.0)
    values = (probs * ratio).sum(dim=-1, keepdim=True)
    torch.mul(probs, ratio.sub_(values), out=student)
    return values.squeeze(-1)
