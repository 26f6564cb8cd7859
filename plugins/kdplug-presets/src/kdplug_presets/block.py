"""Working on a few examples at a time, so that what is in between stays in a CPU's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ELEMENTS = 1 << 18
"""Elements of a block: a few float32 buffers of that size fit a second-level cache."""


def eager_on_cpu(tensor: Tensor) -> bool:
    """Whether operations run one by one on a CPU, where loops are cheap and reading a number waits for nobody."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def blocks(tensor: Tensor) -> Iterator[slice]:
    """Slices of the first axis that cover it; one slice where the device or the compiler does better without."""
    size = len(tensor)
    step = size
    if eager_on_cpu(tensor) and tensor.numel() > _ELEMENTS:
        step = max(1, _ELEMENTS * size // tensor.numel())
    return (slice(start, start + step) for start in range(0, max(size, 1), max(step, 1)))
