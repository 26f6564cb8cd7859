"""A loss with the number of items that it is a mean over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


_Loss = TypeVar("_Loss", bound=Callable[..., Any])


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


CLOSED_FORM = "closed_form"
"""Where a loss holds its closed form: an attribute of the function, a method of the class."""


class ClosedForm(Protocol):
    """The values of a loss for a few items, and their gradient, in one go."""

    def __call__(
        self, student: Tensor, teacher: Any, temperature: Tensor | float, *args: Any, **settings: Any
    ) -> Tensor:
        """Return the loss of each item, and write the gradient of their sum with respect to ``student`` over ``student``.

        The items are a block of rows, small enough for a cache, in float32 or float64. ``teacher`` may be overwritten as well
        where it is a tensor; it is ``SparseLogits`` where the loss asks for ``teacher_sparse`` and the teacher is sparse. The
        settings are those of the loss, each by its name; ``args`` stays empty, and lets a type checker accept any settings.

        The mean of the returned values over all items must be what the loss returns, ``LossSum.value``.

        Shapes: logits ``[n, classes]``; temperature a number, or ``[n, 1]``; the result is ``[n]``.
        """


def closed_form(rows: ClosedForm) -> Callable[[_Loss], _Loss]:
    """Declare, above a loss on logits, the closed form that the engine may take in place of it.

    It is taken where logits come as ``FactoredLogits``: then the gradient is written over the logits, and no more than two
    pieces of them are held. The loss itself stays what it is everywhere else.

        @closed_form(squared_rows)
        def squared(student_logits, teacher_logits): ...
    """

    def declare(loss: _Loss) -> _Loss:
        setattr(loss, CLOSED_FORM, rows)
        return loss

    return declare


ACROSS_VOCABULARIES = "across_vocabularies"
"""Where a loss says that its two sides may differ in the number of classes."""


def across_vocabularies(loss: _Loss) -> _Loss:
    """Declare, above a loss on logits, that class ``i`` of one side need not be class ``i`` of the other.

    Student and teacher may then differ in the number of classes; of any other loss that is an error. Items still have to match
    one by one: it is for adaptors to give both sides one item for the same piece of text.

        @across_vocabularies
        def sorted_distance(student_logits, teacher_logits): ...
    """
    setattr(loss, ACROSS_VOCABULARIES, True)
    return loss


COARSENS = "coarsens"
"""Where a loss says that it may be computed on the categories of a sparse teacher: an attribute of the function or class."""


def coarsens(loss: _Loss) -> _Loss:
    """Declare, above a loss on logits, that joining classes into one category leaves a coarser version of the same loss.

    With ``SparseLogits`` that have a tail, the K classes that are known and all others together are K + 1 categories, other
    ones for each item. A divergence of the two distributions stays one there. A loss that compares ranks, deviations or items
    does not, and is refused. A class may write ``coarsens = True`` instead. ``LossLaws`` hold a loss to the declaration.

        @coarsens
        def squared_distance(student_logits, teacher_logits, temperature): ...
    """
    setattr(loss, COARSENS, True)
    return loss
