"""Repad cached outputs of examples from one batch to the layout of another."""

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
    """The end at which an example's row is padded."""

    END = "end"
    START = "start"


def padding_signature(rows: Tensor) -> Tensor:
    """Return a signature of each row that identifies it regardless of its padding.

    It holds the length and, for each end, the length without the trailing run of one value, that value, and a digest of
    the rest.

    Shapes: ``[batch, length]`` of integers or booleans to int64 ``[batch, 7]``.
    """
    found = [[len(row), *_side(row), *_side(row[::-1])] for row in rows_of(rows)]
    return torch.tensor(found, dtype=torch.int64).reshape(len(rows), 7)


def rows_of(rows: Tensor) -> Array:
    """Return the rows as int64, regardless of their integer type."""
    found: Array = rows.detach().to("cpu", torch.int64).numpy()
    return found


def padding_of(mark: list[int], row: Array) -> Padding | None:
    """Return the padded end of ``row`` if it holds the tokens that ``mark`` was computed from, otherwise ``None``."""
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
    """Return, for each input path, the padded end of each example; the tokens are at the other end.

    ``stored`` holds the padding signature of each example's row in the teacher's batch, ``now`` the rows of this batch.

    Shapes: signatures ``[7]``, rows ``[batch, length]``.
    Raises: ``RunError`` if an example's tokens differ from those in the teacher's batch.
    """
    found = {}
    for path, marks in stored.items():
        current = now.get(path)
        if current is None or len(current) != len(marks):
            text = "is missing from this batch" if current is None else f"has {len(current)} rows in this batch"
            raise RunError(
                f"the teacher's input {path or 'tensor'!r} {text}, but it had one row per example when the teacher ran. "
                "Make the collate_fn or batch_postprocessor return this input with one row per example in every batch, or "
                "set is_caching_logits to false",
                field="is_caching_logits",
            )
        found[path] = [
            _checked(padding_of(mark.tolist(), row), key)
            for mark, row, key in zip(marks, rows_of(current), keys, strict=True)
        ]
    return found


def repad(row: Tensor, length: Length, size: int, padding: Padding) -> Tensor:
    """Return ``row`` with each dimension of ``length`` truncated or zero-padded to ``size``, at the padded end."""
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
    """The layout of one batch: its lengths and the padded end of each example, by input path."""

    layout: Layout
    sizes: Mapping[str, int]
    padded: Mapping[str, list[Padding]]

    def fitted(self, name: str, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows in the layout of the batch.

        Raises: ``RunError`` if rows change and no mask marks the padding.
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
    """Raise ``RunError`` if no mask marks the padding of a padded output."""
    teacher, _, part = name.partition("/")
    key = part.partition("/")[0]
    mask = "logits_mask" if key in ("logits", "logits_mask") else "inputs_mask"
    if key == mask or any(one.startswith(f"{teacher}/{mask}") for one in layout.dtypes):
        return
    if name in layout.heads and layout.heads[name].masked:
        return
    raise RunError(
        f"batches are padded to different lengths, and the teacher's adaptor returns no {mask} to mark the padding of "
        f"its {key}. Return {mask} from adaptor_T, or pad all examples to one length",
        field="is_caching_logits",
    )


def _checked(padding: Padding | None, key: int) -> Padding:
    if padding is not None:
        return padding
    raise RunError(
        f"example {key} has different tokens from those that the teacher received, or padding elsewhere than at the "
        "start or end of the row. The inputs of an example must not depend on other examples, except for padding at one end",
        field="is_caching_logits",
    )
