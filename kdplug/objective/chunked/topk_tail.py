"""Logits of teacher and student on the categories of SparseLogits with a tail: K classes, and all others combined."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.objective.numerics import full


def topk_tail_teacher(teacher: SparseLogits) -> Tensor:
    """Return logits ``[*items, K + 1]`` whose softmax at ``temperature`` is the cached distribution, the tail last."""
    assert teacher.log_probs is not None
    assert teacher.tail is not None
    log_probs, tail = full(teacher.log_probs), full(teacher.tail)
    return torch.cat([log_probs, tail.to(log_probs.dtype).unsqueeze(-1)], dim=-1) * teacher.temperature


def topk_tail_student(logits: Tensor, teacher: SparseLogits) -> Tensor:
    """Return logits ``[*items, K + 1]`` whose softmax at the teacher's temperature is the student's, the rest summed.

    The sum runs over the other classes directly, so a small rest keeps its precision, and an empty one is exactly 0.
    """
    result: Tensor = _TopkTail.apply(logits, teacher.ids, teacher.temperature)  # type: ignore[no-untyped-call]
    return result


class _Parts(NamedTuple):
    """Tempered logits with the K classes masked, and the log-sums over all classes and over the other classes."""

    rest: Tensor
    all_sum: Tensor
    rest_sum: Tensor


def topk_tail_rows(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, _Parts]:
    """Like ``topk_tail_student``, with the inputs of ``expand_rows_``. Divides ``logits`` in place."""
    tempered = logits.div_(temperature)
    known = tempered.gather(-1, ids)
    all_sum = tempered.logsumexp(dim=-1, keepdim=True)
    rest = tempered.scatter(-1, ids, -torch.inf)
    rest_sum = rest.logsumexp(dim=-1, keepdim=True)
    coarse = torch.cat([known, rest_sum], dim=-1).sub_(all_sum).mul_(temperature)
    return coarse, _Parts(rest, all_sum, rest_sum)


def expand_rows_(tempered: Tensor, parts: _Parts, gradient: Tensor, ids: Tensor) -> Tensor:
    """Overwrite ``tempered`` with the gradient for the logits, given the gradient for the K + 1 categories.

    The temperature cancels: it divides the logits and multiplies the category logits.
    """
    has_rest = ~parts.rest_sum.isneginf()
    known, other = gradient[..., :-1], gradient[..., -1:].where(has_rest, 0.0)
    total = known.sum(dim=-1, keepdim=True) + other
    tempered.sub_(parts.all_sum).exp_().mul_(total).neg_()
    share = parts.rest.sub_(parts.rest_sum.where(has_rest, 0.0)).exp_()
    return tempered.addcmul_(share, other).scatter_add_(-1, ids, known)


class _TopkTail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, ids)
        ctx.temperature = temperature
        return topk_tail_rows(logits.clone(), ids, temperature)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, ids = ctx.saved_tensors
        tempered = logits.clone()
        return expand_rows_(tempered, topk_tail_rows(tempered, ids, ctx.temperature)[1], gradient, ids), None, None
