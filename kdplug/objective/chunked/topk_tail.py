"""Student logits in the categories in which a top-k and tail cache knows the teacher: K classes, and the rest as one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdplug.contracts.sparse_logits import SparseLogits
from kdplug.objective.numerics import full


def topk_tail_teacher(teacher: SparseLogits) -> Tensor:
    """Logits ``[*items, K + 1]`` whose softmax over ``temperature`` is what the cache holds, its tail last."""
    assert teacher.log_probs is not None
    assert teacher.tail is not None
    log_probs, tail = full(teacher.log_probs), full(teacher.tail)
    return torch.cat([log_probs, tail.to(log_probs.dtype).unsqueeze(-1)], dim=-1) * teacher.temperature


def topk_tail_student(logits: Tensor, teacher: SparseLogits) -> Tensor:
    """Logits ``[*items, K + 1]`` whose softmax over the teacher's temperature is the student's, the other classes summed up.

    The sum runs over the other classes themselves, so that a small rest keeps its digits, and one of no classes is exactly 0.
    """
    result: Tensor = _TopkTail.apply(logits, teacher.ids, teacher.temperature)  # type: ignore[no-untyped-call]
    return result


class _Parts(NamedTuple):
    """Tempered logits without the K classes, and the logarithms of the sums over all classes and over these."""

    rest: Tensor
    all_sum: Tensor
    rest_sum: Tensor


def topk_tail_rows(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, _Parts]:
    """As ``topk_tail_student``, with what ``expand_rows_`` needs. ``logits`` become tempered."""
    tempered = logits.div_(temperature)
    known = tempered.gather(-1, ids)
    all_sum = tempered.logsumexp(dim=-1, keepdim=True)
    rest = tempered.scatter(-1, ids, -torch.inf)
    rest_sum = rest.logsumexp(dim=-1, keepdim=True)
    coarse = torch.cat([known, rest_sum], dim=-1).sub_(all_sum).mul_(temperature)
    return coarse, _Parts(rest, all_sum, rest_sum)


def expand_rows_(tempered: Tensor, parts: _Parts, gradient: Tensor, ids: Tensor) -> Tensor:
    """Write the gradient with respect to the logits over ``tempered``, given that with respect to the coarse ones.

    The temperature cancels: it divides the logits and multiplies the coarse ones.
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
