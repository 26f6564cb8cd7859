"""A loss on logits that a top-k and tail cache of the teacher is enough for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

ATTRIBUTE = "coarsens"
"""Where a loss says that it may be computed on the categories of a sparse teacher: an attribute of the function or class."""

_Loss = TypeVar("_Loss", bound=Callable[..., Any])


def coarsens(loss: _Loss) -> _Loss:
    """Declare, above a loss on logits, that joining classes into one category leaves a coarser version of the same loss.

    With ``SparseLogits`` that have a tail, the K classes that are known and all others together are K + 1 categories, other
    ones for each item. A divergence of the two distributions stays one there. A loss that compares ranks, deviations or items
    does not, and is refused. A class may write ``coarsens = True`` instead. ``LossLaws`` hold a loss to the declaration.

        @coarsens
        def squared_distance(student_logits, teacher_logits, temperature): ...
    """
    setattr(loss, ATTRIBUTE, True)
    return loss
