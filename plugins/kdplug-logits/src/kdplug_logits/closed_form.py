"""Formulas that the closed forms of losses share. They take softened rows, and may overwrite their inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kdplug_logits.divergence import floored, times_squared, within_support

General = Callable[[Tensor, Tensor], Tensor]
"""Returns values ``[n]`` of tempered rows ``[n, classes]`` and overwrites the student's with their gradient."""

Finite = Callable[[Tensor, Tensor], Tensor | None]
"""Like ``General``, for rows whose largest logit is 0. ``None``, with both sides unchanged, if a value is not finite."""


def closed(
    finite: Finite,
    general: General,
    student: Tensor,
    teacher: Tensor,
    temperature: Tensor | float,
    *,
    t2: bool,
    factor: float = 1.0,
) -> Tensor:
    """Return values ``[n]`` and overwrite ``student`` with their gradient. The formulas take rows divided by the temperature.

    ``finite`` does not handle classes that one side rules out (``-inf``); if its values are not finite, ``general``
    runs. On devices other than a CPU ``general`` runs directly, since checking values would wait for the device. The
    largest logit of each row is subtracted before ``finite``, which takes differences of logits: float32 loses
    precision on large logits. The formula's gradient is ``1 / factor`` of the true one.
    """
    values: Tensor | None = None
    if student.device.type == "cpu":
        from_largest_(student, teacher)
        temper_(temperature, student, teacher)
        values = finite(student, teacher)
    else:
        temper_(temperature, student, teacher)
    if values is None:
        values = general(student, teacher)
    return scaled(values, student, temperature, t2=t2, factor=factor)


def scaled(values: Tensor, student: Tensor, temperature: Tensor | float, *, t2: bool, factor: float = 1.0) -> Tensor:
    """Convert values and gradient of tempered rows to those of the rows, times the squared temperature if ``t2``."""
    slope = temperature * factor if t2 else factor / temperature
    if isinstance(slope, Tensor) or slope != 1:
        student.mul_(slope)
    return times_squared(values, temperature) if t2 else values


def from_largest_(*logits: Tensor) -> None:
    """Subtract each row's largest logit. A row whose largest logit is not finite becomes ``nan``."""
    for one in logits:
        one.sub_(one.amax(dim=-1, keepdim=True))


def temper_(temperature: Tensor | float, *logits: Tensor) -> None:
    """Divide logits by the temperature. Multiplying by the inverse takes half the time."""
    if isinstance(temperature, Tensor) or temperature != 1:
        for one in logits:
            one.mul_(1 / temperature)


def softmax_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax of rows whose largest logit is 0, and the logarithm of their sum of exponentials, ``[n, 1]``.

    This takes little more than half the time of ``softmax``, which also searches for the largest logit.
    """
    probs = logits.exp()
    sums = probs.sum(dim=-1, keepdim=True)
    return probs.mul_(1 / sums), sums.log_()


def mean_of(probs: Tensor, values: Tensor) -> Tensor:
    """Return ``Σ probs · values`` over the classes, ``[n, 1]``."""
    means: Tensor = torch.linalg.vecdot(probs, values)
    return means.unsqueeze(-1)


def entropy_of(probs: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return ``Σ probs (first − second)`` over the classes, ``[n, 1]``; a class of probability 0 adds nothing."""
    return (probs * torch.where(probs > 0, first - second, 0.0)).sum(dim=-1, keepdim=True)


def from_slope_(student: Tensor, probs: Tensor, slope: Tensor) -> None:
    """Overwrite the student's tempered logits with a divergence's gradient, from the derivative ``slope``.

    ``slope`` is the derivative with respect to the student's probabilities, up to a constant per row, which the softmax
    cancels; it is overwritten.
    """
    torch.mul(probs, slope.sub_(mean_of(probs, slope)), out=student)


def kl_rows(student: Tensor, teacher: Tensor, temperature: Tensor | float, *, t2: bool = True) -> Tensor:
    """Evaluate the closed form of ``kl``: the gradient is ``T (q − p)``, with ``t2``."""
    return closed(_kl, _kl_general, student, teacher, temperature, t2=t2)


def reverse_kl_rows(student: Tensor, teacher: Tensor, temperature: Tensor | float, *, t2: bool = True) -> Tensor:
    """Evaluate the closed form of ``reverse_kl``: the gradient is ``T q (log(q / p) − KL(q‖p))``, with ``t2``."""
    return closed(_reverse_kl, _reverse_kl_general, student, teacher, temperature, t2=t2)


def _kl(student: Tensor, teacher: Tensor) -> Tensor | None:
    (own, own_sum), (theirs, their_sum) = softmax_of(student), softmax_of(teacher)
    values = mean_of(theirs, teacher - student) - their_sum + own_sum
    if not values.isfinite().all():
        return None
    torch.sub(own, theirs, out=student)
    return values.squeeze(-1)


def _kl_general(student: Tensor, teacher: Tensor) -> Tensor:
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


def _reverse_kl_general(student: Tensor, teacher: Tensor) -> Tensor:
    own, theirs = within_support(student, teacher).log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    probs = own.exp()
    ratio = torch.where(probs > 0, own - theirs, 0.0)
    values = (probs * ratio).sum(dim=-1, keepdim=True)
    torch.mul(probs, ratio.sub_(values), out=student)
    return values.squeeze(-1)


def jsd_rows(
    student: Tensor,
    teacher: Tensor,
    temperature: Tensor | float,
    *,
    beta: float = 0.5,
    normalize: bool = False,
    t2: bool = True,
) -> Tensor:
    """Evaluate the closed form of ``jsd``: the derivative with respect to ``q`` is ``(1 − β) log(q / m)``."""
    if beta == 0:
        return kl_rows(student, teacher, temperature, t2=t2)
    if beta == 1:
        return reverse_kl_rows(student, teacher, temperature, t2=t2)
    share = min(beta, 1 - beta) if normalize else 1.0
    fast, general = partial(_jsd, beta=beta), partial(_jsd_general, beta=beta)
    return closed(fast, general, student, teacher, temperature, t2=t2, factor=(1 - beta) / share) / share


def skew_kl_rows(
    student: Tensor, teacher: Tensor, temperature: Tensor | float, *, skew: float = 0.1, t2: bool = True
) -> Tensor:
    """Evaluate the closed form of ``skew_kl``: the derivative with respect to ``q`` is ``−(1 − λ) p / m``."""
    if skew == 0:
        return kl_rows(student, teacher, temperature, t2=t2)
    fast, general = partial(_skew_kl, skew=skew), partial(_skew_kl_general, skew=skew)
    return closed(fast, general, student, teacher, temperature, t2=t2, factor=skew - 1)


def skew_reverse_kl_rows(
    student: Tensor, teacher: Tensor, temperature: Tensor | float, *, skew: float = 0.1, t2: bool = True
) -> Tensor:
    """Evaluate the closed form of ``skew_reverse_kl``.

    The derivative with respect to ``q``, the student's probability, is ``log(q / m) − λ q / m``.
    """
    if skew == 0:
        return reverse_kl_rows(student, teacher, temperature, t2=t2)
    fast, general = partial(_skew_reverse_kl, skew=skew), partial(_skew_reverse_kl_general, skew=skew)
    return closed(fast, general, student, teacher, temperature, t2=t2)


def _mixed(theirs: Tensor, own: Tensor, share: float) -> Tensor:
    """Return ``share · theirs + (1 − share) · own``, kept above 0 if both underflow."""
    return torch.lerp(own, theirs, share).clamp_(min=torch.finfo(own.dtype).tiny)


def _jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor | None:
    (own, own_sum), (theirs, their_sum) = softmax_of(student), softmax_of(teacher)
    log_mixed = _mixed(theirs, own, beta).log_()
    ratio = student - log_mixed  # up to the logarithm of the sum, which does not affect the gradient
    means = mean_of(own, ratio), mean_of(theirs, torch.sub(teacher, log_mixed, out=log_mixed))
    values = (1 - beta) * (means[0] - own_sum) + beta * (means[1] - their_sum)
    if not values.isfinite().all():
        return None
    torch.mul(own, ratio.sub_(means[0]), out=student)
    return values.squeeze(-1)


def _jsd_general(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
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


def _skew_kl_general(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
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


def _skew_reverse_kl_general(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    own, theirs = floored(student.log_softmax(dim=-1)), teacher.softmax(dim=-1)
    probs = own.exp()
    mixed = _mixed(theirs, probs, 1 - skew)
    share = torch.div(probs, mixed, out=theirs)
    ratio = own.sub_(mixed.log_())
    values = mean_of(probs, ratio)
    from_slope_(student, probs, ratio.sub_(share, alpha=skew))
    return values.squeeze(-1)
