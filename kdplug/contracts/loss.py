"""Return type and declarations of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from kdplug.errors import SignatureError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


_Loss = TypeVar("_Loss", bound=Callable[..., Any])


class LossSum(NamedTuple):
    """A sum over items and the number of items.

    A loss that is a mean over items (tokens, examples, pairs) returns this instead of the mean, and so does an adaptor
    under ``losses``. The division happens once, by the number of items in the whole batch, however the batch was split.

    Shapes: ``total`` is a scalar tensor with gradient; ``count`` a number or a scalar tensor without one.
    """

    total: Tensor
    count: Tensor | float  # type: ignore[assignment]  # hides ``tuple.count``

    @property
    def value(self) -> Tensor:
        """``total / count``, or 0 (connected to the graph) if nothing was counted."""
        count = self.count
        if isinstance(count, (int, float)):
            return self.total / count if count > 0 else self.total * 0.0
        return self.total / count.masked_fill(count <= 0, 1)


CLOSED_FORM = "closed_form"


class ClosedForm(Protocol):
    """Computes per-item loss values and their gradient together."""

    def __call__(
        self, student: Tensor, teacher: Any, temperature: Tensor | float, *args: Any, **settings: Any
    ) -> Tensor:
        """Return the loss of each item, and overwrite ``student`` with the gradient of their sum with respect to it.

        The items are a block of rows, small enough for a CPU cache, in float32 or float64. A ``teacher`` tensor may be
        overwritten too; ``teacher`` is ``SparseLogits`` if the loss requests ``teacher_sparse`` and the teacher is
        sparse. Settings are passed by name; ``args`` stays empty and lets type checkers accept any settings.

        The mean of the returned values over all items must equal the loss, ``LossSum.value``.

        Shapes: logits ``[n, classes]``; temperature a number, or ``[n, 1]``; the result is ``[n]``.
        """


def closed_form(rows: ClosedForm) -> Callable[[_Loss], _Loss]:
    """Declare a closed form that the engine may use in place of a loss on logits.

    It is used for ``FactoredLogits``: the gradient overwrites the logits, so at most two chunks of them are held. The
    loss itself is used everywhere else.

        @closed_form(squared_rows)
        def squared(student_logits, teacher_logits): ...
    """

    def declare(loss: _Loss) -> _Loss:
        setattr(loss, CLOSED_FORM, rows)
        return loss

    return declare


ACROSS_VOCABULARIES = "across_vocabularies"
ANY_LAYERS = "any_layers"
COARSENS = "coarsens"
MEAN_OVER_ITEMS = "mean_over_items"
SUM_OVER_ITEMS = "sum_over_items"
TAKES_NUMBERS = "takes_numbers"
WHOLE_SEQUENCES = "whole_sequences"
DECLARATIONS = (
    ACROSS_VOCABULARIES,
    ANY_LAYERS,
    CLOSED_FORM,
    COARSENS,
    MEAN_OVER_ITEMS,
    SUM_OVER_ITEMS,
    TAKES_NUMBERS,
    WHOLE_SEQUENCES,
)
"""Attributes that a loss function or class can set to declare its properties."""


def declares(loss: Any, name: str) -> bool:
    """Return whether a loss makes the declaration ``name`` itself.

    A declaration that ``functools.wraps`` copied from another function does not count, nor does one of a base class whose
    ``forward`` the loss overrides.
    """
    value = getattr(loss, name, None)
    if isinstance(loss, type):
        return bool(value) and _is_stated_by(loss, name)
    if value is True or name == CLOSED_FORM:
        return value is not None and not _is_copied(loss, name)
    return value is loss


COMPARES_ITEMS = "compares_items"
INTEGER_INPUTS = "integer_inputs"
OWN_PARAMETERS = "own_parameters"
RANDOM = "random"
READS_TEACHER = "reads_teacher"
SHAPES = "shapes"
TAKES_SCORES = "takes_scores"
FACTS: Mapping[str, Any] = MappingProxyType(
    {
        COMPARES_ITEMS: False,
        INTEGER_INPUTS: (),
        OWN_PARAMETERS: False,
        RANDOM: False,
        READS_TEACHER: True,
        SHAPES: None,
        TAKES_SCORES: False,
    }
)
"""Facts that a loss function or class can state as attributes, with the value of a loss that does not."""


def facts(**stated: Any) -> Callable[[_Loss], _Loss]:
    """State facts of a loss, which exclude the laws of ``kdplug.testing`` that cannot hold.

    ``compares_items``, ``own_parameters``, ``random`` and ``takes_scores`` may be ``True``, ``reads_teacher`` may be
    ``False``; ``integer_inputs`` is a tuple of input names and ``shapes`` a shape of ``LossLaws``. A class may set
    attributes of these names instead.

        @facts(compares_items=True)
        def similarity(student_features, teacher_features): ...

    Raises: ``SignatureError`` for an unknown fact, or one of the wrong type.
    """
    for name, value in stated.items():
        _check_fact(name, value, "facts")

    def state(loss: _Loss) -> _Loss:
        for name, value in stated.items():
            setattr(loss, name, value)
        return loss

    return state


def stated_facts(loss: Any) -> dict[str, Any]:
    """Return the facts that a loss states itself, other than the usual ones.

    What ``functools.wraps`` copied does not count, nor does what a base class states whose ``forward`` the loss
    overrides.

    Raises: ``SignatureError`` for a fact of the wrong type.
    """
    found = {name: getattr(loss, name) for name in FACTS if _states(loss, name)}
    for name, value in found.items():
        _check_fact(name, value, getattr(loss, "__name__", type(loss).__name__))
    return {name: value for name, value in found.items() if value != FACTS[name]}


def _states(loss: Any, name: str) -> bool:
    if isinstance(loss, type):
        return _is_stated_by(loss, name)
    if not hasattr(loss, name):
        return False
    return not _is_copied(loss, name) if name in getattr(loss, "__dict__", {}) else _is_stated_by(type(loss), name)


def _check_fact(name: str, value: Any, owner: str) -> None:
    if name not in FACTS:
        raise SignatureError(
            f"{owner}: there is no fact {name!r}.{did_you_mean(name, FACTS)} Facts: {', '.join(FACTS)}"
        )
    usual = FACTS[name]
    if isinstance(usual, bool) and not isinstance(value, bool):
        raise SignatureError(f"{owner} states {name} = {value!r}, which must be True or False")
    if name == INTEGER_INPUTS and not (isinstance(value, tuple) and all(isinstance(one, str) for one in value)):
        raise SignatureError(
            f'{owner} states {name} = {value!r}, which must be a tuple of input names, such as ("teacher_features",)'
        )
    if name == SHAPES and not isinstance(value, str | tuple | list | None):
        raise SignatureError(
            f'{owner} states {name} = {value!r}, which must be a shape as a tuple, the name of a usual shape such as "maps", or '
            "a list with one of these for each layer"
        )


def _is_stated_by(cls: type, name: str) -> bool:
    """Return whether a class has the attribute ``name`` from the class that defines its ``forward``, or from below."""
    owner = next((one for one in cls.__mro__ if name in vars(one) or "forward" in vars(one)), None)
    return owner is not None and name in vars(owner)


def _is_copied(loss: Any, name: str) -> bool:
    return getattr(getattr(loss, "__wrapped__", None), name, None) is getattr(loss, name)


def reduction_of(loss: Any) -> Literal["mean", "sum", "LossSum"] | None:
    """Return the declared reduction, ``LossSum`` if annotated as the return type, or ``None`` if unknown.

    Raises: ``SignatureError`` if a loss declares both.
    """
    declared = [name for name in (MEAN_OVER_ITEMS, SUM_OVER_ITEMS) if declares(loss, name)]
    if len(declared) == 2:
        raise SignatureError(
            f"{getattr(loss, '__name__', loss)} declares both {declared[0]} and {declared[1]}. Remove one"
        )
    if declared:
        return "mean" if declared[0] == MEAN_OVER_ITEMS else "sum"
    return "LossSum" if is_annotated_as_sum(loss) else None


def is_annotated_as_sum(loss: Any) -> bool:
    """Return whether the return annotation of a loss, of the function or of ``forward``, is ``LossSum``."""
    annotations = getattr(getattr(loss, "forward", loss), "__annotations__", {})
    return "LossSum" in str(annotations.get("return", ""))


def across_vocabularies(loss: _Loss) -> _Loss:
    """Declare that class ``i`` of the student need not be class ``i`` of the teacher.

    Student and teacher may then differ in the number of classes, which is an error for any other loss. The adaptors
    must still return the same items on both sides.

        @across_vocabularies
        def sorted_distance(student_logits, teacher_logits): ...
    """
    setattr(loss, ACROSS_VOCABULARIES, loss)
    return loss


def any_layers(loss: _Loss) -> _Loss:
    """Declare that the loss takes lists of features that differ in length between student and teacher.

    Without the declaration, ``layer_S`` and ``layer_T`` must have the same length. A class may set ``any_layers = True``.

        @any_layers
        def nearest_layer(student_features, teacher_features): ...
    """
    setattr(loss, ANY_LAYERS, loss)
    return loss


def coarsens(loss: _Loss) -> _Loss:
    """Declare that merging classes into one category gives a coarser version of the same loss.

    ``SparseLogits`` with a tail hold K known classes and the sum of all others: K + 1 categories, which differ between
    items. A divergence of two distributions remains a divergence there. A loss that compares ranks, deviations or items
    changes its meaning. Without the declaration ``SparseLogits`` with a tail raise an error. A class may set ``coarsens
    = True``. ``LossLaws`` test the declaration.

        @coarsens
        def squared_distance(student_logits, teacher_logits, temperature): ...
    """
    setattr(loss, COARSENS, loss)
    return loss


def mean_over_items(loss: _Loss) -> _Loss:
    """Declare that the scalar is a mean over items, so it can be computed in chunks and averaged.

    Needed for large vocabularies (``FactoredLogits``): an undeclared scalar is computed on all logits at once. A loss
    annotated ``-> LossSum`` needs no declaration. A class may set ``mean_over_items = True``. ``LossLaws`` test the
    declaration. The items of a loss that declares ``whole_sequences`` are sequences.

        @mean_over_items
        def absolute(student_logits, teacher_logits): return (student_logits - teacher_logits).abs().mean()
    """
    setattr(loss, MEAN_OVER_ITEMS, loss)
    return loss


def sum_over_items(loss: _Loss) -> _Loss:
    """Declare that the scalar is a sum over items, so it can be computed in chunks and added; see ``mean_over_items``.

    A class may set ``sum_over_items = True``.

    @sum_over_items
    def absolute(student_logits, teacher_logits): return (student_logits - teacher_logits).abs().sum()
    """
    setattr(loss, SUM_OVER_ITEMS, loss)
    return loss


def takes_numbers(loss: _Loss) -> _Loss:
    """Declare that the loss also compares plain numbers: logits with one class, as in regression.

    The softmax of one class is always 1, so a loss on probabilities has no gradient there. Without the declaration a
    student with one output is rejected. A class may set ``takes_numbers = True``. ``LossLaws`` test the declaration.

        @takes_numbers
        def squared(student_logits, teacher_logits): return ((student_logits - teacher_logits) ** 2).mean()
    """
    setattr(loss, TAKES_NUMBERS, loss)
    return loss


def whole_sequences(loss: _Loss) -> _Loss:
    """Declare that a loss on logits compares positions of a sequence with each other.

    Without the declaration a loss gets the positions that count as a list of items, ``[n, classes]``, which may be
    divided anywhere. With it, the loss gets logits ``[batch, length, classes]`` and, as ``[batch, length]``, the mask
    (bool, always given), the labels and a scheduled temperature. Places that do not count hold 0 in logits, -100 in
    labels and False in the mask. The masks of student and teacher must be equal. Sequences are never divided; the items
    of ``mean_over_items`` and ``sum_over_items`` are sequences. A class may set ``whole_sequences = True``. ``LossLaws``
    test the declaration.

        @whole_sequences
        def slopes(student_logits, teacher_logits, mask): ...
    """
    setattr(loss, WHOLE_SEQUENCES, loss)
    return loss
