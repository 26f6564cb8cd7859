"""How the tokens of an example lie in its row, in a few numbers in place of the tokens."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy
import torch
from torch import Tensor

from kdplug.engine.cache_digest import digest

Array = numpy.ndarray[Any, Any]


class Padding(Enum):
    """Where the padding of an example's row is."""

    END = "end"
    START = "start"


def marks(rows: Tensor) -> Tensor:
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
