"""Each loss as its plainest formula, in float64, item by item and class by class where that is clearer.

Logits are ``[items, classes]`` and finite; a temperature is a number or ``[items]``. A result is the mean that the loss
should give, a float64 scalar that autograd can go through. Nothing here comes from the package.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rows(student: Tensor, teacher: Tensor, temperature: Tensor | float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each item's logits, flattened to a list of rows, with its temperature, in float64."""
    student, teacher = student.double(), teacher.double().detach()
    degrees = torch.as_tensor(temperature, dtype=torch.float64).expand(student.shape[:-1]).reshape(-1)
    flat = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
    return list(zip(*flat, degrees, strict=True))


def _kl(first: Tensor, second: Tensor) -> Tensor:
    return sum((f * (f / s).log() for f, s in zip(first, second, strict=True) if f > 0), start=torch.zeros(()))


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def kl(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    return _mean(
        [t**2 * _kl((p / t).softmax(0), (q / t).softmax(0)) for q, p, t in rows(student, teacher, temperature)]
    )


def reverse_kl(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    return _mean(
        [t**2 * _kl((q / t).softmax(0), (p / t).softmax(0)) for q, p, t in rows(student, teacher, temperature)]
    )


def _over_items(per_item, student: Tensor, teacher: Tensor, temperature: Tensor | float) -> Tensor:
    """The mean of ``T² per_item(q, p)``."""
    return _mean(
        [t**2 * per_item((q / t).softmax(0), (p / t).softmax(0)) for q, p, t in rows(student, teacher, temperature)]
    )


def jsd(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0, beta: float = 0.5) -> Tensor:
    def per_item(q: Tensor, p: Tensor) -> Tensor:
        middle = beta * p + (1 - beta) * q
        return beta * _kl(p, middle) + (1 - beta) * _kl(q, middle)

    return _over_items(per_item, student, teacher, temperature)


def skew_kl(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0, skew: float = 0.1) -> Tensor:
    return _over_items(lambda q, p: _kl(p, skew * p + (1 - skew) * q), student, teacher, temperature)


def skew_reverse_kl(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0, skew: float = 0.1) -> Tensor:
    return _over_items(lambda q, p: _kl(q, skew * q + (1 - skew) * p), student, teacher, temperature)


def tvd(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    return _over_items(
        lambda q, p: sum(abs(a - b) for a, b in zip(q, p, strict=True)) / 2, student, teacher, temperature
    )


def adaptive_kl(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0, mass: float = 0.5) -> Tensor:
    def per_item(q: Tensor, p: Tensor) -> Tensor:
        order = sorted(range(len(p)), key=lambda i: -float(p[i]))
        held, head = 0.0, []
        for place, i in enumerate(order):
            held += float(p[i])
            if place == 0 or held <= mass:
                head.append(i)
        gaps = [float((p[i] - q[i]).detach().abs()) for i in range(len(p))]
        w = sum(gaps[i] for i in head) / sum(gaps)
        return w * _kl(p, q) + (1 - w) * _kl(q, p)

    return _over_items(per_item, student, teacher, temperature)


def alpha_beta(
    student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0, alpha: float = 0.2, beta: float = 0.7
) -> Tensor:
    both = alpha + beta

    def per_item(q: Tensor, p: Tensor) -> Tensor:
        inner = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
        return -inner.sum() / (alpha * beta)

    return _over_items(per_item, student, teacher, temperature)


def labelled(student: Tensor, teacher: Tensor, temperature: Tensor | float, labels: Tensor):
    """As ``rows``, with the label, without the items that have none."""
    found = zip(rows(student, teacher, temperature), labels.reshape(-1).tolist(), strict=True)
    return [(*row, label) for row, label in found if label >= 0]


def _without(probs: Tensor, label: int) -> Tensor:
    others = torch.cat([probs[:label], probs[label + 1 :]])
    return others / others.sum()


def dkd(
    student: Tensor,
    teacher: Tensor,
    temperature: Tensor | float,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    values = []
    for own, theirs, t, y in labelled(student, teacher, temperature, labels):
        q, p = (own / t).softmax(0), (theirs / t).softmax(0)
        target = _kl(torch.stack([p[y], 1 - p[y]]), torch.stack([q[y], 1 - q[y]]))
        values.append(t**2 * (alpha * target + beta * _kl(_without(p, y), _without(q, y))))
    return _mean(values)


def nkd(student: Tensor, teacher: Tensor, temperature: Tensor | float, labels: Tensor, gamma: float = 1.5) -> Tensor:
    values = []
    for own, theirs, t, y in labelled(student, teacher, temperature, labels):
        at_label = -theirs.softmax(0)[y] * own.softmax(0)[y].log()
        q, p = _without((own / t).softmax(0), y), _without((theirs / t).softmax(0), y)
        values.append(at_label - gamma * t**2 * (p * q.log()).sum())
    return _mean(values)


def wsld(student: Tensor, teacher: Tensor, temperature: Tensor | float, labels: Tensor) -> Tensor:
    values = []
    for own, theirs, t, y in labelled(student, teacher, temperature, labels):
        ratio = -own.detach().softmax(0)[y].log() / (1e-7 - theirs.softmax(0)[y].log())
        soft = -((theirs / t).softmax(0) * (own / t).softmax(0).log()).sum()
        values.append((1 - torch.exp(-ratio)) * t**2 * soft)
    return _mean(values)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([first, second]))[0, 1]


def dist(student: Tensor, teacher: Tensor, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """With one temperature for all."""
    q, p = (
        torch.stack([(row[side] / row[2]).softmax(0) for row in rows(student, teacher, temperature)]) for side in (0, 1)
    )
    over_classes = _mean([_correlation(a, b) for a, b in zip(q, p, strict=True)])
    over_items = _mean([_correlation(a, b) for a, b in zip(q.T, p.T, strict=True)])
    return temperature**2 * (beta * (1 - over_classes) + gamma * (1 - over_items))


def logit_std(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    student, teacher = (
        torch.stack([(row - row.mean()) / row.std() for row in side.double().reshape(-1, side.shape[-1])])
        for side in (student, teacher)
    )
    degrees = torch.as_tensor(temperature, dtype=torch.float64)
    return kl(student, teacher, degrees.reshape(-1) if degrees.dim() else float(degrees))


def bce(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    values = []
    for own, theirs, t in rows(student, teacher, temperature):
        q, p = torch.sigmoid(own / t), torch.sigmoid(theirs / t)
        values.append(-(t**2) * (p * q.log() + (1 - p) * (1 - q).log()).sum())
    return _mean(values)


def regression(student: Tensor, teacher: Tensor) -> Tensor:
    return _mean([sum((a - b) ** 2 for a, b in zip(q, p, strict=True)) for q, p, _ in rows(student, teacher, 1.0)])


def ranking(student: Tensor, teacher: Tensor, form: str = "logistic", margin: float = 1.0) -> Tensor:
    values = []
    for own, theirs, _ in rows(student, teacher, 1.0):
        for i in range(len(own)):
            for j in range(len(own)):
                if theirs[i] > theirs[j]:
                    lead = own[i] - own[j]
                    values.append((1 + (-lead).exp()).log() if form == "logistic" else (margin - lead).clamp(min=0))
    return _mean(values)


def topk(
    student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0, k: int = 64, rest: str = "tail"
) -> Tensor:
    def per_item(q: Tensor, p: Tensor) -> Tensor:
        kept = sorted(range(len(p)), key=lambda i: -float(p[i]))[:k]
        own, theirs = q[kept], p[kept]
        if rest == "renorm_teacher":
            theirs = theirs / theirs.sum()
        value = _kl(theirs, own)
        left = [i for i in range(len(p)) if i not in kept]
        return value + _kl(p[left].sum()[None], q[left].sum()[None]) if rest == "tail" and left else value

    return _over_items(per_item, student, teacher, temperature)


def cross_entropy(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    return _over_items(lambda q, p: -(p * q.log()).sum(), student, teacher, temperature)


def uld(student: Tensor, teacher: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    def per_item(q: Tensor, p: Tensor) -> Tensor:
        own, theirs = (sorted(side.unbind(), key=float, reverse=True) for side in (q, p))
        length = max(len(own), len(theirs))
        nothing = torch.zeros((), dtype=torch.float64)
        own, theirs = (side + [nothing] * (length - len(side)) for side in (own, theirs))
        return sum(abs(a - b) for a, b in zip(own, theirs, strict=True))

    return _over_items(per_item, student, teacher, temperature)
