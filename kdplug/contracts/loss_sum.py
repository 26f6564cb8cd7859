"""A loss with the number of items that it is a mean over."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class LossSum(NamedTuple):
    """A sum over items and the number of items it runs over.

    A loss that is a mean over items (tokens, examples, pairs) returns this instead of the mean, and so does an adaptor under
    ``losses``. The division happens once: by the count of the whole batch, whatever pieces the batch was computed in.

    Shapes: ``total`` is a scalar tensor that carries the gradient; ``count`` a number or a scalar tensor without one.
    """

    total: Tensor
    count: Tensor | float  # type: ignore[assignment]  # the field's word, at the cost of ``tuple.count``

    @property
    def value(self) -> Tensor:
        """``total / count``, and 0 (connected to the graph) where nothing was counted."""
        count = self.count
        if isinstance(count, (int, float)):
            return self.total / count if count > 0 else self.total * 0.0
        return self.total / count.masked_fill(count <= 0, 1)


def is_valid_count(count: Tensor | float, *, waits: bool = False) -> bool:
    """Whether ``count`` is finite and at least 0.

    A tensor on an accelerator is read only if ``waits``, and otherwise passes; so does every tensor while torch compiles.
    """
    if not isinstance(count, (int, float)):
        import torch

        if torch.compiler.is_compiling() or count.is_meta or not (count.is_cpu or waits):
            return True
        count = float(count)
    return 0 <= count < math.inf
