"""Two vocabularies of which one was padded."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from kdplug.contracts.factored_logits import FactoredLogits
from kdplug.errors import OutputsError, ShapeError
from kdplug.objective.selection import Pair

if TYPE_CHECKING:
    from kdplug.contracts.outputs import Logits


class Vocabulary:
    """Reconciles logits that differ in the number of classes, where ``padded_vocabulary`` says that it is padding.

    The classes that one side alone has are as if it ruled them out: they are left out. Models of one family pad one
    tokenizer's vocabulary to different lengths (151,936 and 152,064 classes, say), and the padding stands for no token. A loss
    that ``is_across`` takes them as they are, unless they are said to be padding.
    """

    def __init__(self, padding: Literal["refuse", "drop"], *, is_across: bool = False) -> None:
        self._drops = padding == "drop"
        self._is_across = is_across
        self._told: set[tuple[int, int]] = set()

    def __call__(self, pair: Pair) -> Pair:
        """The pair with as many classes on both sides; what is left out is told once.

        Raises: ``ShapeError`` where the classes differ in number and nothing may be left out.
        """
        ours, theirs = pair.student.shape, pair.teacher.shape
        if not ours or not theirs or ours[-1] == theirs[-1] or ours[:-1] != theirs[:-1]:
            return pair
        if not self._drops and self._is_across:
            return pair
        if not self._drops:
            raise ShapeError(
                f"the student's {list(ours)} and the teacher's {list(theirs)} must have one shape, classes last. Where both "
                "use one tokenizer and the classes beyond the shorter one are padding, write padded_vocabulary: drop; of two "
                "vocabularies, take a loss that is declared across_vocabularies",
                field="logits",
            )
        classes = min(ours[-1], theirs[-1])
        self._tell(ours[-1], theirs[-1])
        return Pair(_first(pair.student, classes), _first(pair.teacher, classes), pair.labels)

    def _tell(self, ours: int, theirs: int) -> None:
        if (ours, theirs) not in self._told:
            self._told.add((ours, theirs))
            side = "teacher" if theirs > ours else "student"
            warnings.warn(
                f"padded_vocabulary: the student has {ours} classes and the teacher {theirs}; the last {abs(ours - theirs)} of "
                f"the {side} are left out",
                stacklevel=2,
            )


def _first(logits: Logits, classes: int) -> Logits:
    if logits.shape[-1] == classes:
        return logits
    if isinstance(logits, Tensor):
        return logits[..., :classes]
    if isinstance(logits, FactoredLogits):
        return logits.first(classes)
    try:
        return replace(logits, classes=classes)  # what the cut classes hold is in the tail
    except OutputsError as error:
        raise OutputsError(
            f"the cache names a class that the student, with {classes}, does not have: {error.message}",
            field="teacher.logits",
        ) from None
