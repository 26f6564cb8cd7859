"""A loss on logits whose gradient is known without autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

ATTRIBUTE = "closed_form"
"""Where a loss holds its closed form: an attribute of the function, a method of the class."""

_Loss = TypeVar("_Loss", bound=Callable[..., Any])


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
        setattr(loss, ATTRIBUTE, rows)
        return loss

    return declare
