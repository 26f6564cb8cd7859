"""Outputs of examples that were padded in one batch, laid out as another batch pads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import torch
from torch import Tensor

from kdplug.engine.cache_layout import Layout, Length
from kdplug.errors import RunError


class Padding(Enum):
    """Where the padding of an example's row is."""

    END = "end"
    START = "start"


def paddings(
    stored: Mapping[str, Sequence[Tensor]], now: Mapping[str, Tensor], keys: Sequence[int]
) -> dict[str, list[Padding]]:
    """For each guide, where each example is padded: what both rows have in common lies at the other end.

    ``stored`` holds each example's row as the teacher was given it, ``now`` the rows of this batch.

    Shapes: rows ``[length]`` and ``[batch, length]``.
    Raises: ``RunError`` where the rows have nothing in common: the tokens lie otherwise than the teacher saw them.
    """
    found = {}
    for path, rows in stored.items():
        current = now.get(path)
        if current is None or len(current) != len(rows):
            raise RunError(f"the teacher's input {path or 'tensor'!r} [batch, length] is not in this batch any more")
        if all(row.shape == current.shape[1:] for row in rows) and torch.equal(torch.stack(list(rows)), current):
            found[path] = [Padding.END] * len(rows)
        else:
            found[path] = [_padding(row, current[place], keys[place]) for place, row in enumerate(rows)]
    return found


def fit(row: Tensor, length: Length, size: int, padding: Padding) -> Tensor:
    """``row`` with each dimension of ``length`` cut to ``size``, or filled up with zeros, at the end that is padded."""
    shape = list(row.shape)
    for dim in length.dims:
        shape[dim - 1] = size
    if shape == list(row.shape):
        return row
    made = row.new_zeros(shape)
    source, target = row, made
    for dim in length.dims:
        kept = min(row.shape[dim - 1], size)
        starts = (0, 0) if padding is Padding.END else (row.shape[dim - 1] - kept, size - kept)
        source, target = source.narrow(dim - 1, starts[0], kept), target.narrow(dim - 1, starts[1], kept)
    target.copy_(source)
    return made


def check_masked(name: str, layout: Layout) -> None:
    """Raises: ``RunError`` where nothing says which positions of a padded output count."""
    teacher, _, part = name.partition("/")
    key = part.partition("/")[0]
    mask = "logits_mask" if key in ("logits", "logits_mask") else "inputs_mask"
    if key == mask or any(one.startswith(f"{teacher}/{mask}") for one in layout.dtypes):
        return
    raise RunError(
        f"batches are padded to different lengths, and the teacher's adaptor returns no {mask} that says what of its {key} is "
        f"padding. Return {mask} from adaptor_T, or pad all examples to one length",
        field="is_caching_logits",
    )


def _padding(row: Tensor, current: Tensor, key: int) -> Padding:
    kept = min(len(row), len(current))
    if torch.equal(row[:kept], current[:kept]):
        return Padding.END
    if torch.equal(row[-kept:], current[-kept:]):
        return Padding.START
    raise RunError(
        f"example {key} is laid out otherwise than when the teacher saw it: its tokens lie neither at the start nor at the end of "
        "both rows. What the batch is made of must not depend on the other examples, padding at one end apart",
        field="is_caching_logits",
    )
