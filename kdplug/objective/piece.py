"""How many items are worked out at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch

ChunkSetting = int | Literal["auto", "whole"]

_MOST = {"cpu": 512}
_MOST_ELSEWHERE = 4096
"""Items of a piece beyond which its matrix products get no faster."""

_BUDGET = {"cpu": 768 << 20}
_BUDGET_ELSEWHERE = 4 << 30
"""Bytes that the two buffers of a piece, the student's and the teacher's, may take together."""

_CACHED = 1 << 16
_CACHED_ELSEWHERE = 1 << 26
"""Elements of a block on which several operations run before it leaves the cache. A GPU wants few operations instead."""


def piece_length(setting: ChunkSetting, items: int, classes: int, itemsize: int, device: torch.device) -> int:
    """How many of the items form a piece: what ``logit_chunk`` says, or what a memory budget allows (at least 16).

    ``itemsize`` is the bytes of one logit in a buffer. The pieces are about equally long, none longer than the setting.
    """
    if setting == "whole":
        return max(items, 1)
    if setting == "auto":
        budget = _BUDGET.get(device.type, _BUDGET_ELSEWHERE)
        longest = max(16, min(_MOST.get(device.type, _MOST_ELSEWHERE), budget // (2 * classes * itemsize)))
    else:
        longest = setting
    return math.ceil(items / max(1, math.ceil(items / longest)))


def pieces(items: int, length: int) -> Iterator[slice]:
    """Slices of ``length`` items, the last one shorter, that cover them all."""
    return (slice(start, min(start + length, items)) for start in range(0, items, length))


def blocks(items: int, classes: int, device: torch.device) -> Iterator[slice]:
    """Slices of a few rows of ``[items, classes]`` that stay in a cache."""
    elements = _CACHED if device.type == "cpu" else _CACHED_ELSEWHERE
    return pieces(items, max(1, elements // classes))
