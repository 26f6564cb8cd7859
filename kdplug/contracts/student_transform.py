"""Interface of a student transform: it changes the student before training, and changes it back afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch.nn import Module


@runtime_checkable
class StudentTransform(Protocol):
    """Prepares a student for training, and finishes it. Any class with these methods is one; it need not import kdplug.

    Its ``__init__`` takes keyword-only settings. Both methods may change the student in place, and return it or another
    module. ``finish`` reads nothing but the student: evaluations finish a copy of it, and another process finishes a
    student that it has prepared and loaded from a checkpoint.

    A class whose ``finish`` takes long sets ``finish_is_costly = True``: evaluations during training then measure the
    prepared student, and only the trained one is finished.
    """

    def prepare(self, student: Module) -> Module:
        """Return the student to train. New parameters are drawn from torch's global generator, which is seeded."""
        ...

    def finish(self, student: Module) -> Module:
        """Return the student to measure and save, from one that ``prepare`` returned and that was trained."""
        ...


FINISH_IS_COSTLY = "finish_is_costly"
"""Attribute of a transform whose ``finish`` is too slow for evaluations during training."""
