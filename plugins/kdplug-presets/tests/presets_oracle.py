"""Each match and kd loss as its plainest formula, in float64, over lists of Python loops where that is clearer.

Inputs are tensors of any floating type; a result is a float64 scalar that autograd can go through. A mask is bool.
"""

from __future__ import annotations

import torch
from torch import Tensor

PAD = -1e-3


def _double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in tensors)


def _unpadded(scores: Tensor) -> Tensor:
    return torch.where(scores <= PAD, 0.0, scores)


def _with_heads(scores: Tensor) -> Tensor:
    return scores if scores.dim() == 4 else scores.unsqueeze(1)


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    student, teacher = _double(_with_heads(student), _with_heads(teacher))
    if mask is None:
        return (_unpadded(student) - _unpadded(teacher)).square().mean()
    per_example = [
        (student[b][:, keep][:, :, keep] - teacher[b][:, keep][:, :, keep]).square().flatten()
        for b, keep in enumerate(mask)
    ]
    return torch.cat(per_example).mean()


def attention_mse_sum(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    return attention_mse(_with_heads(student).double().sum(1), _with_heads(teacher).double().sum(1), mask)


def attention_ce(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    student, teacher = _double(_with_heads(student), _with_heads(teacher))
    target, log_probs = teacher.softmax(-1), student.log_softmax(-1)
    if mask is None:
        return -(torch.where(teacher <= PAD, 0.0, target) * log_probs).sum(-1).mean()
    rows = [-(target[b] * log_probs[b])[:, keep][:, :, keep].sum(-1).flatten() for b, keep in enumerate(mask)]
    return torch.cat(rows).mean()


def attention_ce_mean(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    return attention_ce(_with_heads(student).double().mean(1), _with_heads(teacher).double().mean(1), mask)


def attention_ce_probs(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    student, teacher = _double(_with_heads(student), _with_heads(teacher))
    rows = [-(teacher[b] * student[b].log())[:, keep][:, :, keep].sum(-1).flatten() for b, keep in enumerate(mask)]
    return torch.cat(rows).mean()


def _tokens(features: Tensor, mask: Tensor | None) -> Tensor:
    features = features.double()
    return features.flatten(0, -2) if mask is None else features[mask]


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    return (_tokens(student, mask) - _tokens(teacher, mask)).square().mean()


def cos(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    return (1.0 - torch.cosine_similarity(_tokens(student, mask), _tokens(teacher, mask), dim=-1)).mean()


def pkd(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    student, teacher = (side.double()[:, 0] if side.dim() == 3 else side.double() for side in (student, teacher))
    if mask is not None:
        student, teacher = student[mask.any(1)], teacher[mask.any(1)]
    unit = [side / side.norm(dim=1, keepdim=True) for side in (student, teacher)]
    return (unit[0] - unit[1]).square().sum(1).mean()


def fsp(student: list[Tensor], teacher: list[Tensor], mask: Tensor | None = None) -> Tensor:
    keeps = torch.ones(student[0].shape[:2], dtype=torch.bool) if mask is None else mask
    per_example = []
    for b, keep in enumerate(keeps):
        s0, s1, t0, t1 = (side[b][keep].double() for side in (*student, *teacher))
        if keep.any():
            per_example.append((s0.T @ s1 / keep.sum() - t0.T @ t1 / keep.sum()).square().mean())
    return torch.stack(per_example).mean()


def nst(student: list[Tensor], teacher: list[Tensor], mask: Tensor | None = None) -> Tensor:
    keeps = torch.ones(student[0].shape[:2], dtype=torch.bool) if mask is None else mask
    pairs = []
    for b, keep in enumerate(keeps):
        s0, s1, t0, t1 = (side[b][keep].double() for side in (*student, *teacher))
        pairs.append((s0 @ s1.T / s0.shape[-1] - t0 @ t1.T / t0.shape[-1]).square().flatten())
    return torch.cat(pairs).mean()


def _per_item(temperature: Tensor | float) -> Tensor | float:
    is_tensor = isinstance(temperature, Tensor) and temperature.dim() > 0
    return temperature.double().unsqueeze(-1) if is_tensor else temperature


def ce(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    student, teacher = (side.double() / _per_item(temperature) for side in (student, teacher))
    return -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).mean()


def mse(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    student, teacher = (side.double() / _per_item(temperature) for side in (student, teacher))
    return (student - teacher).square().mean()
