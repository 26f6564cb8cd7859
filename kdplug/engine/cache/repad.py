"""Outputs of examples that were padded in one batch, laid out as another batch pads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy
import torch
from torch import Tensor

from kdplug.engine.cache.layout import Layout, Length
from kdplug.engine.hashing import digest
from kdplug.errors import RunError

Array = numpy.ndarray[Any, Any]


class Padding(Enum):
    """Where the padding of an example's row is."""

    END = "end"
    START = "start"


def padding_signature(rows: Tensor) -> Tensor:
    """For each row: its length, and from either side how long it is without its last run of one value, that value, and a digest
    of the rest. That is enough to know the row again wherever it is padded.

    Shapes: ``[batch, length]`` of whole numbers or booleans to int64 ``[batch, 7]``.
    """
    found = [[len(row), *_side(row), *_side(row[::-1])] for row in rows_of(rows)]
    return torch.tensor(found, dtype=torch.int64).reshape(len(rows), 7)


def rows_of(rows: Tensor) -> Array:
    """The rows in one form, whatever whole numbers they are made of."""
    found: Array = rows.detach().to("cpu", torch.int64).numpy()
    return found


def padding_of(mark: list[int], row: Array) -> Padding | None:
    """Where a row is padded that holds the same tokens as the one which ``mark`` is of; ``None`` where it does not."""
    length, end, start = mark[0], mark[1:4], mark[4:7]
    if _is_same(length, end, row):
        return Padding.END
    return Padding.START if _is_same(length, start, row[::-1]) else None


def _side(row: Array) -> list[int]:
    if not len(row):
        return [0, 0, digest([])]
    others = numpy.flatnonzero(row != row[-1])
    kept = int(others[-1]) + 1 if len(others) else 0
    return [kept, int(row[-1]), _digest(row[:kept])]


def _is_same(length: int, side: list[int], row: Array) -> bool:
    kept, value, mark = side
    common = min(length, len(row))
    return kept <= common and bool((row[kept:common] == value).all()) and _digest(row[:kept]) == mark


def _digest(row: Array) -> int:
    return digest(row.tobytes())


def paddings(
    stored: Mapping[str, Sequence[Tensor]], now: Mapping[str, Tensor], keys: Sequence[int]
) -> dict[str, list[Padding]]:
    """For each guide, where each example is padded: what both rows have in common lies at the other end.

    ``stored`` holds the marks of each example's row as the teacher was given it, ``now`` the rows of this batch.

    Shapes: marks ``[7]``, rows ``[batch, length]``.
    Raises: ``RunError`` where the tokens of an example lie otherwise than the teacher saw them.
    """
    found = {}
    for path, marks in stored.items():
        current = now.get(path)
        if current is None or len(current) != len(marks):
            raise RunError(f"the teacher's input {path or 'tensor'!r} [batch, length] is not in this batch any more")
        found[path] = [
            _checked(padding_of(mark.tolist(), row), key)
            for mark, row, key in zip(marks, rows_of(current), keys, strict=True)
        ]
    return found


def repad(row: Tensor, length: Length, size: int, padding: Padding) -> Tensor:
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


@dataclass(frozen=True, slots=True)
class Repadding:
    """How the rows of one batch's examples are to be laid out: its lengths and the ends that are padded, by guide."""

    layout: Layout
    sizes: Mapping[str, int]
    padded: Mapping[str, list[Padding]]

    def fitted(self, name: str, rows: Sequence[Tensor]) -> list[Tensor]:
        """Rows that follow a guide, as the batch wants them.

        Raises: ``RunError`` where they change and nothing says which of their positions count.
        """
        length = self.layout.lengths[name]
        ends = [
            Padding.START if Padding.START in one else Padding.END
            for one in zip(*(self.padded[path] for path in length.paths), strict=True)
        ]
        size = self.sizes[length.paths[0]] - length.less
        found = [repad(row, length, size, end) for row, end in zip(rows, ends, strict=True)]
        if any(one is not row for one, row in zip(found, rows, strict=True)):
            check_masked(name, self.layout)
        return found


def check_masked(name: str, layout: Layout) -> None:
    """Raises: ``RunError`` where nothing says which positions of a padded output count."""
    teacher, _, part = name.partition("/")
    key = part.partition("/")[0]
    mask = "logits_mask" if key in ("logits", "logits_mask") else "inputs_mask"
    if key == mask or any(one.startswith(f"{teacher}/{mask}") for one in layout.dtypes):
        return
    if name in layout.heads and layout.heads[name].masked:
        return
    raise RunError(
        f"batches are padded to different lengths, and the teacher's adaptor returns no {mask} that says what of its {key} is "
        f"padding. Return {mask} from adaptor_T, or pad all examples to one length",
        field="is_caching_logits",
    )


def _checked(padding: Padding | None, key: int) -> Padding:
    if padding is not None:
        return padding
    raise RunError(
        f"example {key} is laid out otherwise than when the teacher saw it: its tokens lie neither at the start nor at the end of "
        "both rows. What the batch is made of must not depend on the other examples, padding at one end apart",
        field="is_caching_logits",
    )
