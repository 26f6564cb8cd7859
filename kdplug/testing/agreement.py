"""How laws compare tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def is_close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether two tensors agree up to ``tolerance``, relative and absolute."""
    return torch.allclose(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference between two lists of tensors."""
    return max(float((one - two).abs().max()) for one, two in zip(found, expected, strict=True))


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds ``nan`` or an infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def number(value: Tensor | float) -> float:
    """A scalar as a number, cut from its graph."""
    return float(value.detach() if isinstance(value, Tensor) else value)
