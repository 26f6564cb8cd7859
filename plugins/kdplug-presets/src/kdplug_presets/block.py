"""Working on a few examples at a time, so that what is in between is never held as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_SPARING = 1 << 21
"""Elements of a block that keeps temporary memory small: 8 MiB of float32."""

_CACHED = 1 << 18
"""Elements of a block that stays in a CPU's caches over several passes: 1 MiB of float32."""


SMALL = 1 << 16
"""Elements up to which starting an operation costs more than carrying it out."""


def is_small(tensor: Tensor) -> bool:
    """Whether few operations matter more than few passes over memory."""
    return tensor.numel() <= SMALL


def eager_on_cpu(tensor: Tensor) -> bool:
    """Whether operations run one by one on a CPU, where loops are cheap and reading a number waits for nobody."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def sparing_blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of the first axis that cover it, small enough for temporary results not to count."""
    return _slices(tensor, _SPARING)


def cached_blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of the first axis that cover it, small enough for several passes over each to run in the cache."""
    return _slices(tensor, _CACHED)


def _slices(tensor: Tensor, elements: int) -> Iterator[slice]:
    size = len(tensor)
    step = size
    if eager_on_cpu(tensor) and tensor.numel() > elements:
        step = elements * size // tensor.numel()
    return (slice(start, start + max(step, 1)) for start in range(0, max(size, 1), max(step, 1)))
