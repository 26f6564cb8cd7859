"""Closed forms of the divergences from a mixture of both sides: Jensen–Shannon and the skewed ones."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kdplug_logits.closed_form import closed, from_slope_, mean_of, softmax_of
from kdplug_logits.closed_form_kl import kl_rows, reverse_kl_rows
from kdplug_logits.mixture import floored


def jsd_rows(
    student: Tensor,
    teacher: Tensor,
    temperature: Tensor | float,
    *,
    beta: float = 0.5,
    normalize: bool = False,
    t2: bool = True,
) -> Tensor:
    """Closed form of ``jsd``: by the student's probability the derivative is ``(1 − β) log(q / m)``."""
    if beta == 0:
        return kl_rows(student, teacher, temperature, t2=t2)
    if beta == 1:
        return reverse_kl_rows(student, teacher, temperature, t2=t2)
    share = min(beta, 1 - beta) if normalize else 1.0
    fast, careful = partial(_jsd, beta=beta), partial(_jsd_carefully, beta=beta)
    return closed(fast, careful, student, teacher, temperature, t2=t2, factor=(1 - beta) / share) / share


def skew_kl_rows(
    student: Tensor, teacher: Tensor, temperature: Tensor | float, *, skew: float = 0.1, t2: bool = True
) -> Tensor:
    """Closed form of ``skew_kl``: by the student's probability the derivative is ``−(1 − λ) p / m``."""
    if skew == 0:
        return kl_rows(student, teacher, temperature, t2=t2)
    fast, careful = partial(_skew_kl, skew=skew), partial(_skew_kl_carefully, skew=skew)
    return closed(fast, careful, student, teacher, temperature, t2=t2, factor=skew - 1)


def skew_reverse_kl_rows(
    student: Tensor, teacher: Tensor, temperature: Tensor | float, *, skew: float = 0.1, t2: bool = True
) -> Tensor:
    """Closed form of ``skew_reverse_kl``: by the student's probability the derivative is ``log(q / m) − λ q / m``."""
    if skew == 0:
        return reverse_kl_rows(student, teacher, temperature, t2=t2)
    fast, careful = partial(_skew_reverse_kl, skew=skew), partial(_skew_reverse_kl_carefully, skew=skew)
    return closed(fast, careful, student, teacher, temperature, t2=t2)


def _mixed(theirs: Tensor, own: Tensor, share: float) -> Tensor:
    """``share · theirs + (1 − share) · own``, kept above 0 where both are too small to be told from it."""
    return torch.lerp(own, theirs, share).clamp_(min=torch.finfo(own.dtype).tiny)


def _jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor | None:
    (own, own_sum), (theirs, their_sum) = softmax_of(student), softmax_of(teacher)
    log_mixed = _mixed(theirs, own, beta).log_()
    ratio = student - log_mixed  # but for the logarithm of the sum, which the gradient does not see
    means = mean_of(own, ratio), mean_of(theirs, torch.sub(teacher, log_mixed, out=log_mixed))
    values = (1 - beta) * (means[0] - own_sum) + beta * (means[1] - their_sum)
    if not values.isfinite().all():
        return None
    torch.mul(own, ratio.sub_(means[0]), out=student)
    return values.squeeze(-1)


def _jsd_carefully(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    own, theirs = floored(student.log_softmax(dim=-1)), floored(teacher.log_softmax(dim=-1))
    probs, their_probs = own.exp(), theirs.exp()
    log_mixed = _mixed(their_probs, probs, beta).log_()
    ratio = own.sub_(log_mixed)
    mean = mean_of(probs, ratio)
    values = (1 - beta) * mean + beta * mean_of(their_probs, theirs.sub_(log_mixed))
    torch.mul(probs, ratio.sub_(mean), out=student)
    return values.squeeze(-1)


def _skew_kl(student: Tensor, teacher: Tensor, skew: float) -> Tensor | None:
    (own, _), (theirs, their_sum) = softmax_of(student), softmax_of(teacher)
    mixed = _mixed(theirs, own, skew)
    ratio = theirs / mixed
    values = mean_of(theirs, torch.sub(teacher, mixed.log_(), out=mixed)) - their_sum
    if not values.isfinite().all():
        return None
    from_slope_(student, own, ratio)
    return values.squeeze(-1)


def _skew_kl_carefully(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    own, theirs = student.softmax(dim=-1), floored(teacher.log_softmax(dim=-1))
    probs = theirs.exp()
    mixed = _mixed(probs, own, skew)
    ratio = probs / mixed
    values = mean_of(probs, theirs.sub_(mixed.log_()))
    from_slope_(student, own, ratio)
    return values.squeeze(-1)


def _skew_reverse_kl(student: Tensor, teacher: Tensor, skew: float) -> Tensor | None:
    (own, own_sum), (theirs, _) = softmax_of(student), softmax_of(teacher)
    mixed = _mixed(theirs, own, 1 - skew)
    torch.div(own, mixed, out=theirs)
    ratio = torch.sub(student, mixed.log_(), out=mixed)
    values = mean_of(own, ratio) - own_sum
    if not values.isfinite().all():
        return None
    from_slope_(student, own, ratio.sub_(theirs, alpha=skew))
    return values.squeeze(-1)


def _skew_reverse_kl_carefully(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    own, theirs = floored(student.log_softmax(dim=-1)), teacher.softmax(dim=-1)
    probs = own.exp()
    mixed = _mixed(theirs, probs, 1 - skew)
    share = torch.div(probs, mixed, out=theirs)
    ratio = own.sub_(mixed.log_())
    values = mean_of(probs, ratio)
    from_slope_(student, probs, ratio.sub_(share, alpha=skew))
    return values.squeeze(-1)
