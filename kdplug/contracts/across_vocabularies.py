"""A loss on logits of two vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

ATTRIBUTE = "across_vocabularies"
"""Where a loss says that its two sides may differ in the number of classes."""

_Loss = TypeVar("_Loss", bound=Callable[..., Any])


def across_vocabularies(loss: _Loss) -> _Loss:
    """Declare, above a loss on logits, that class ``i`` of one side need not be class ``i`` of the other.

    Student and teacher may then differ in the number of classes; of any other loss that is an error. Items still have to match
    one by one: it is for adaptors to give both sides one item for the same piece of text.

        @across_vocabularies
        def sorted_distance(student_logits, teacher_logits): ...
    """
    setattr(loss, ATTRIBUTE, True)
    return loss
