"""Test logits for cache codecs: independent items, as a tensor or as factors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdplug.contracts.cache_codec import Encoded, Ragged
from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.contracts.tree import dotted, leaves
from kdplug.testing.sample import draw

WIDTH = 5


def make_logits(
    items: int,
    classes: int,
    *,
    factored: bool,
    seed: int = 0,
    size: float = 3.0,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Make logits ``[items, classes]`` of about ``size`` that depend only on the arguments."""
    if not factored:
        return (size * draw((items, classes), seed)).to(dtype)
    hidden, weight, bias = draw((items, WIDTH), seed), draw((classes, WIDTH), 97), draw((classes,), 98)
    return FactoredLogits((size / 2 * hidden).to(dtype), weight.to(dtype), bias.to(dtype))


def at(logits: Any, places: list[int]) -> Any:
    """Select items, in the order of ``places``."""
    index = torch.tensor(places, device=logits.device)
    return logits[index] if isinstance(logits, Tensor) else logits.at(index)


def with_item(logits: Any, place: int, value: float) -> Any:
    """Return the logits with ``value`` as the first number of one item."""
    changed = (logits.hidden if isinstance(logits, FactoredLogits) else logits).clone()
    changed[place, 0] = value
    return replace(logits, hidden=changed) if isinstance(logits, FactoredLogits) else changed


def ruled_out(logits: Any, since: int) -> Any:
    """Return the logits with ``-inf`` for every class from ``since`` on."""
    if isinstance(logits, FactoredLogits):
        assert logits.bias is not None
        return replace(logits, bias=ruled_out(logits.bias, since))
    changed = logits.clone()
    changed[..., since:] = -math.inf
    return changed


def each(logits: Any, change: Any) -> Any:
    """Return the logits with ``change`` applied to every tensor in them."""
    if isinstance(logits, Tensor):
        return change(logits)
    bias = None if logits.bias is None else change(logits.bias)
    return replace(logits, hidden=change(logits.hidden), weight=change(logits.weight), bias=bias)


def exact(logits: Any) -> Tensor:
    """Return the logits, multiplied out in float64."""
    wide = each(logits.detach(), Tensor.double)
    found: Tensor = wide.dense() if isinstance(wide, FactoredLogits) else wide
    return found


def tensors_of(value: Any) -> dict[str, Tensor]:
    """Return every tensor in logits, in their parts, or in a mapping, by name."""
    inside = value.parts if isinstance(value, Encoded) else value
    return {dotted(path) or "logits": leaf for path, leaf in leaves(inside) if isinstance(leaf, Tensor)}


def parts_at(parts: Any, places: list[int]) -> dict[str, Tensor | Ragged]:
    """Select the parts of some items, in the order of ``places``."""
    return {name: _part_at(part, places) for name, part in parts.items()}


def _part_at(part: Tensor | Ragged, places: list[int]) -> Tensor | Ragged:
    if isinstance(part, Tensor):
        return part[torch.tensor(places, dtype=torch.int64)]
    rows = torch.split(part.values, part.counts.tolist())
    chosen = [rows[place] for place in places]
    return Ragged(torch.cat(chosen) if chosen else part.values[:0], _part_at(part.counts, places))  # type: ignore[arg-type]
