"""Whether what the teacher is given can be cached: the same example gives the same row, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdplug.engine.cache_digest import digest
from kdplug.engine.cache_key import Keyed, Source
from kdplug.errors import RunError


def check_repeatable(source: Source, inputs_of: Callable[[Any], Any]) -> None:
    """Draw the first examples twice, and once in reverse.

    Raises: ``RunError`` where they differ (random augmentation, masking or mixing, in the dataset, the collate function or the
    postprocessor), or where rows do not follow the examples (a collate function that sorts).
    """
    group = list(range(min(source.batch_size, source.count)))
    first, again = (next(source.read([group], alone=True)) for _ in range(2))
    if first.digests != again.digests:
        place = next(key for key, one, other in zip(group, first.digests, again.digests, strict=True) if one != other)
        raise _random(f"example {place} drawn twice gives two different examples")
    inputs = inputs_of(first.batch)
    if digest(inputs) != digest(inputs_of(again.batch)):
        raise _random("the same examples give two different batches: collate_fn or batch_postprocessor draws at random")
    if not source.is_whole and len(group) > 1:
        _check_order(first, inputs, inputs_of(next(source.read([group[::-1]], alone=True)).batch))


def _random(what: str) -> RunError:
    return RunError(
        f"{what}, so what the teacher says of it cannot be kept. Take the augmentation out, or set is_caching_logits to false",
        field="is_caching_logits",
    )


def _check_order(keyed: Keyed, inputs: Any, reverse: Any) -> None:
    if not _is_reverse(inputs, reverse, len(keyed.keys)):
        raise RunError(
            "the rows of a batch do not follow its examples: the same examples in reverse do not give the batch in reverse. A "
            "collate_fn or batch_postprocessor that sorts, drops or mixes examples cannot be used with is_caching_logits",
            field="is_caching_logits",
        )


def _is_reverse(one: Any, other: Any, count: int) -> bool:
    if isinstance(one, Tensor):
        if not one.dim() or len(one) != count:
            return True  # not of the examples
        return isinstance(other, Tensor) and one.shape == other.shape and _same(one.flip(0), other)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and all(
            key in other and _is_reverse(inner, other[key], count) for key, inner in one.items()
        )
    if isinstance(one, (list, tuple)):
        if len(one) == count and not any(isinstance(inner, Tensor) and len(inner.shape) for inner in one):
            return digest(list(one)[::-1]) == digest(list(other))
        return len(one) == len(other) and all(map(_is_reverse, one, other, [count] * len(one)))
    return True


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or digest(one) == digest(other)  # bits, since nan differs from nan
