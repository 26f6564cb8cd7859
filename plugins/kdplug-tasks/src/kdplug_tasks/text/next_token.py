"""Align logits, dense or factored, with the tokens that they predict, and compute losses and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from kdplug import FactoredLogits, LossSum
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.targets.category import at_least_float32, cross_entropy_sum

Logits: TypeAlias = Tensor | FactoredLogits

_PIECE = 1 << 24
"""Number of logits computed at a time: 64 MiB in float32."""


def shifted(logits: Logits, labels: Tensor, vocabulary: int | None) -> tuple[Logits, Tensor]:
    """Return logits without the last position, of the first ``vocabulary`` classes, and the labels they predict.

    Shapes: ``[batch, length, V]`` and ``[batch, length]`` to ``[batch, length - 1, V]`` and ``[batch, length - 1]``.
    """
    labels = labels[:, 1:].to(logits.device)
    if isinstance(logits, Tensor):
        return logits[:, :-1, :vocabulary], labels
    return replace(logits, hidden=logits.hidden[:, :-1]).first(vocabulary or logits.classes), labels


def pieces(logits: Logits, labels: Tensor) -> Iterator[tuple[Logits, Tensor]]:
    """Yield the items that have a label, with their labels, in chunks small enough to compute dense logits.

    Shapes: ``[*items, V]`` and ``[*items]`` to ``[n, V]`` and ``[n]``.
    """
    counted = labels != NO_LABEL
    chosen = labels[counted]
    if isinstance(logits, Tensor):
        places, length = counted.nonzero(), max(16, _PIECE // logits.shape[-1])
        for start in range(0, len(chosen), length):
            yield logits[places[start : start + length].unbind(1)], chosen[start : start + length]
        return
    rows, length = logits.at(counted), max(16, _PIECE // logits.classes)
    for start in range(0, len(chosen), length):
        yield replace(rows, hidden=rows.hidden[start : start + length]), chosen[start : start + length]


def loss_sum(logits: Logits, labels: Tensor) -> LossSum:
    """Return ``cross_entropy_sum``; factored logits are computed in chunks, and again in the backward pass.

    Shapes: ``[*items, V]`` and ``[*items]``, ``-100`` = none.
    """
    if isinstance(logits, Tensor):
        return cross_entropy_sum(logits, labels)
    total = at_least_float32(logits.hidden.reshape(-1)[:0].sum())
    for rows, chosen in pieces(logits, labels):
        total = total + checkpoint(_summed, rows, chosen, use_reentrant=False, preserve_rng_state=False)
    return LossSum(total, (labels != NO_LABEL).sum())


def figures(logits: Logits, labels: Tensor) -> Tensor:
    """Return for each row the summed cross-entropy of items with a label, how many are right, and their number.

    Shapes: ``[rows, length, V]`` and ``[rows, length]`` to ``[rows, 3]``, in float64 on the CPU.
    """
    found = torch.zeros(len(labels), 3, dtype=torch.float64)
    places, start = (labels != NO_LABEL).nonzero()[:, 0].cpu(), 0
    for rows, chosen in pieces(logits, labels):
        held = _dense(rows)
        nats = functional.cross_entropy(held, chosen, reduction="none")
        right = held.argmax(dim=-1) == chosen
        counted = torch.stack([nats, right.to(nats.dtype), torch.ones_like(nats)], dim=1).cpu()
        found.index_add_(0, places[start : start + len(chosen)], counted.double())
        start += len(chosen)
    return found


def after_end(logits: Logits, labels: Tensor, end: int, begins: int) -> tuple[float, float, int]:
    """Return the mean cross-entropy of all items with a label, and mean and number of those that begin a document.

    These follow the label ``end``, with the ``begins`` start tokens of a document between them, which have no label.
    """
    follows = torch.zeros_like(labels, dtype=torch.bool)
    gap = begins + 1
    follows[:, gap:] = labels[:, :-gap] == end
    total, _, count = figures(logits, labels).sum(dim=0).tolist()
    nats, _, first = figures(logits, labels.masked_fill(~follows, NO_LABEL)).sum(dim=0).tolist()
    return total / max(count, 1), nats / max(first, 1), int(first)


def _summed(rows: FactoredLogits, chosen: Tensor) -> Tensor:
    return functional.cross_entropy(_dense(rows), chosen, reduction="sum")


def _dense(rows: Logits) -> Tensor:
    return at_least_float32(rows if isinstance(rows, Tensor) else rows.dense())
