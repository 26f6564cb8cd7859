"""Logits beside the tokens that they are about, multiplied out or in factors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from kdplug import FactoredLogits, LossSum
from kdplug_tasks.data.label import NO_LABEL
from kdplug_tasks.targets.category import at_least_float32, cross_entropy_sum

Logits: TypeAlias = Tensor | FactoredLogits

_PIECE = 1 << 24
"""Logits that are multiplied out at once: 64 MiB in float32."""


def shifted(logits: Logits, labels: Tensor, vocabulary: int | None) -> tuple[Logits, Tensor]:
    """Logits and the labels that they are about, without the last position, and of the vocabulary the first ``vocabulary``.

    Shapes: ``[batch, length, V]`` and ``[batch, length]`` to ``[batch, length - 1, V]`` and ``[batch, length - 1]``.
    """
    labels = labels[:, 1:].to(logits.device)
    if isinstance(logits, Tensor):
        return logits[:, :-1, :vocabulary], labels
    return replace(logits, hidden=logits.hidden[:, :-1]).first(vocabulary or logits.classes), labels


def pieces(logits: Logits, labels: Tensor) -> Iterator[tuple[Logits, Tensor]]:
    """The items that have a label, few enough at a time to be multiplied out, with their labels.

    Shapes: ``[*items, V]`` and ``[*items]`` to ``[n, V]`` and ``[n]``.
    """
    counted = labels != NO_LABEL
    chosen = labels[counted]
    if isinstance(logits, Tensor):
        yield logits[counted], chosen
        return
    rows, length = logits.at(counted), max(16, _PIECE // logits.classes)
    for start in range(0, len(chosen), length):
        yield replace(rows, hidden=rows.hidden[start : start + length]), chosen[start : start + length]


def loss_sum(logits: Logits, labels: Tensor) -> LossSum:
    """``cross_entropy_sum``; of factors a piece at a time, which the backward pass works out again.

    Shapes: ``[*items, V]`` and ``[*items]``, ``-100`` = none.
    """
    if isinstance(logits, Tensor):
        return cross_entropy_sum(logits, labels)
    total = at_least_float32(logits.hidden.reshape(-1)[:0].sum())
    for rows, chosen in pieces(logits, labels):
        total = total + checkpoint(_summed, rows, chosen, use_reentrant=False, preserve_rng_state=False)
    return LossSum(total, (labels != NO_LABEL).sum())


def figures(logits: Logits, labels: Tensor) -> tuple[float, int, int]:
    """The cross-entropy of the items that have a label, summed; how many of them come first; how many there are."""
    total, right, count = 0.0, 0, 0
    for rows, chosen in pieces(logits, labels):
        held = _dense(rows)
        total += float(functional.cross_entropy(held, chosen, reduction="sum"))
        right += int((held.argmax(dim=-1) == chosen).sum())
        count += len(chosen)
    return total, right, count


def _summed(rows: FactoredLogits, chosen: Tensor) -> Tensor:
    return functional.cross_entropy(_dense(rows), chosen, reduction="sum")


def _dense(rows: Logits) -> Tensor:
    return at_least_float32(rows if isinstance(rows, Tensor) else rows.dense())
